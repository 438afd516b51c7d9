"""A kind of stage that is not part of kdprune: it clips outlying weights."""

from typing import Annotated, Literal

import numpy as np
import pydantic

from kdprune import register_stage
from kdprune.stages import FLOAT_MODEL, Stage
from kdprune.stages.settings import Name


@register_stage
class Clip(Stage):
    """Clips the weights of each kernel at so many standard deviations."""

    kind: Literal["clip"]
    from_: Name = pydantic.Field(alias="from")
    deviations: Annotated[float, pydantic.Field(gt=0)] = 2.0

    accepts = {"from": (FLOAT_MODEL,)}
    gives = FLOAT_MODEL
    role = "quantize"
    keeps_layers = True
    plans = ("from",)

    def draws(self):
        return False

    def estimate(self, run, node):
        return 2.0

    def check(self, run, node):
        super().check(run, node)
        if self.deviations > 10:
            raise ValueError(f"stages.{node.stage}.deviations: nothing is beyond 10")

    def plan(self, run, node):
        kernels = self._kernels(run, node)
        outside = sum(int((abs(k) > self._limit(k)).sum()) for k in kernels)
        return f"clips {outside} of {sum(k.size for k in kernels)} weights"

    def execute(self, run, node, folder):
        from kdprune.stages import fitting

        model = fitting.load_node(run, node.parent_of("from"))
        clipped = 0
        weights = model.get_weights()
        for place, value in enumerate(weights):
            if value.ndim > 1:
                limit = self._limit(value)
                clipped += int((abs(value) > limit).sum())
                weights[place] = np.clip(value, -limit, limit)
        model.set_weights(weights)
        return fitting.save_outputs(model, folder, {"clipped": clipped})

    def _kernels(self, run, node):
        from kdprune.stages import fitting

        model = fitting.load_node(run, node.parent_of("from"))
        return [value for value in model.get_weights() if value.ndim > 1]

    def _limit(self, kernel):
        return self.deviations * kernel.std()
