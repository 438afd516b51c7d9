"""Classifies images with MediaPipe Tasks, in an environment of its own.

    python mediapipe_client.py model.tflite images.npy > scores.json

Prints the classes' names and, for each image, the scores in their order.
"""

import json
import sys

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision


def main(model, images):
    options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=model))
    scores, names = [], {}
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for image in np.load(images):
            image = mediapipe.Image(
                image_format=mediapipe.ImageFormat.SRGB,
                data=np.ascontiguousarray(image),
            )
            found = classifier.classify(image).classifications[0].categories
            names.update({category.index: category.category_name for category in found})
            scores.append([c.score for c in sorted(found, key=lambda c: c.index)])
    print(json.dumps({"names": [names[i] for i in sorted(names)], "scores": scores}))


if __name__ == "__main__":
    main(*sys.argv[1:])
