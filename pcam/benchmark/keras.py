"""The published study's own way of training, in Keras.

Imports nothing of Lightning's: in one process with TensorFlow 2.21, Lightning makes LLVM abort.
"""

from collections.abc import Iterator
from typing import Any

from pcam.benchmark.race import Stopwatch
from pcam.benchmark.workload import DROPOUT, LR, MOMENTUM, Workload
from pcam.extras import import_extra


def train_keras(workload: Workload, stopwatch: Stopwatch) -> None:
    """Train Keras's MobileNetV2 as the study did: images are read file by file and scaled to [-1, 1].

    Args:
        workload: What is to be trained.
        stopwatch: Measures each turn.

    Raises:
        UserError: If TensorFlow is not installed.
    """
    tensorflow = import_extra("tensorflow", "keras")
    keras = tensorflow.keras
    applications = keras.applications.mobilenet_v2
    features = applications.MobileNetV2(input_shape=(96, 96, 3), include_top=False, weights=None, pooling="avg")
    score = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Dropout(DROPOUT)(features.output))
    model = keras.Model(features.input, score)
    model.compile(keras.optimizers.SGD(LR, momentum=MOMENTUM), "binary_crossentropy", metrics=["accuracy"])
    images = keras.preprocessing.image.ImageDataGenerator(preprocessing_function=applications.preprocess_input)
    batches = images.flow_from_directory(
        workload.class_folders / "train", (96, 96), batch_size=workload.batch_size, class_mode="binary"
    )

    def end_step(step: int, logs: object) -> None:
        workload.end_step(stopwatch, step + 1)  # Keras numbers steps from 0

    def endless() -> Iterator[Any]:
        while True:
            images, labels = next(batches)
            if len(labels) == workload.batch_size:  # the last batch of an epoch is smaller
                yield images, labels

    signature = (tensorflow.TensorSpec((None, 96, 96, 3)), tensorflow.TensorSpec((None,)))
    stream = tensorflow.data.Dataset.from_generator(endless, output_signature=signature)
    turns = keras.callbacks.LambdaCallback(on_train_batch_end=end_step)
    model.fit(stream, steps_per_epoch=workload.all_steps, callbacks=[turns], verbose=0)
