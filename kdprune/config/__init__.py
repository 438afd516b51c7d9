"""The recipe: its schema, loading, overrides, and errors that name the key.

A recipe is a YAML page that names stages and says which stage each starts from:

    name: quickstart
    data: {dataset: shapes}
    stages:
      teacher: {kind: train, model: {name: resnet9, width: 16}}
      student: {kind: distill, teacher: teacher, model: {name: resnet8}}

Every key is checked before anything runs. Importing this needs no TensorFlow.
"""

from kdprune.config.loading import load_recipe, parse_recipe, set_key
from kdprune.config.plugins import load_plugins
from kdprune.config.references import stage_order
from kdprune.config.schema import Recipe, recipe_schema
from kdprune.stages import KINDS, InvalidRecipe
from kdprune.stages.settings import names

__all__ = [
    "KINDS",
    "InvalidRecipe",
    "Recipe",
    "load_plugins",
    "load_recipe",
    "names",
    "parse_recipe",
    "recipe_schema",
    "set_key",
    "stage_order",
]
