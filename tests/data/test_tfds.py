"""TensorFlow Datasets' files: framed by TensorBoard's writer, encoded by protobuf, and read without either."""

import shutil
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorboard.summary.writer.record_writer import RecordWriter

from pcam.data import PCamDataModule
from pcam.data.layouts import find_layout
from pcam.errors import UserError
from tests.data.forms import Patches, encode, write_classes

REPEATED, SINGLE = (
    descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
    descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
)
MESSAGES = {
    "BytesList": [("value", 1, "BYTES", REPEATED)],
    "Int64List": [("value", 1, "INT64", REPEATED)],
    "Feature": [("bytes_list", 1, "BytesList", SINGLE), ("int64_list", 3, "Int64List", SINGLE)],
    "Entry": [("key", 1, "STRING", SINGLE), ("value", 2, "Feature", SINGLE)],
    "Features": [("feature", 1, "Entry", REPEATED)],
    "Example": [("features", 1, "Features", SINGLE)],
}
"""TensorFlow's example.proto and feature.proto, with the map as the repeated entries that it is on the wire."""


@pytest.fixture(scope="module")
def example_class() -> type:
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="made", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, label in fields:
            added = message.field.add(name=field, number=number, label=label)
            if kind in MESSAGES:
                added.type, added.type_name = added.TYPE_MESSAGE, f".made.{kind}"
            else:
                added.type = getattr(added, f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("made.Example"))


def write_tfds(folder: Path, patches: Patches, example_class: type) -> None:
    """Two shards of each split."""
    folder.mkdir(parents=True)
    for split, (images, labels) in patches.items():
        for shard in (0, 1):
            name = f"patch_camelyon-{'validation' if split == 'valid' else split}.tfrecord-{shard:05d}-of-00002"
            with (folder / name).open("wb") as file:
                writer = RecordWriter(file)
                for index in range(shard, len(labels), 2):
                    example = example_class()
                    values = {"image": [encode(images[index])], "id": [f"{split}_{index}".encode()]}
                    for key, value in values.items():
                        example.features.feature.add(key=key).value.bytes_list.value.extend(value)
                    example.features.feature.add(key="label").value.int64_list.value.append(int(labels[index]))
                    writer.write(example.SerializeToString())


@pytest.fixture
def root(patches: Patches, example_class: type, tmp_path: Path) -> Path:
    write_tfds(tmp_path / "tfds" / "patch_camelyon" / "2.0.0", patches, example_class)
    return tmp_path / "tfds"


def test_the_patches_are_those_that_were_written(patches: Patches, root: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "classes", patches)
    found = PCamDataModule(root, cache_dir=tmp_path / "cache")
    expected = PCamDataModule(tmp_path / "classes", cache_dir=tmp_path / "cache")
    assert find_layout(root).form.name == "TensorFlow Datasets' files"
    for split, (_, labels) in patches.items():
        store = found.packed(split)
        assert store.fingerprint == expected.packed(split).fingerprint
        assert set(store.ids()) == {f"{split}_{index}" for index in range(len(labels))}


def test_files_that_are_not_whole_are_refused(root: Path, tmp_path: Path) -> None:
    folder = root / "patch_camelyon" / "2.0.0"
    path = folder / "patch_camelyon-test.tfrecord-00000-of-00002"
    whole = path.read_bytes()
    for damaged in (whole[:-50], whole[:5], b"\xff" * 8 + whole[8:], whole[:12] + b"\x0b" + whole[13:]):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"Expected a whole file in .*test\.tfrecord-00000-of-00002, but it cannot be"
        ):
            PCamDataModule(root, cache_dir=tmp_path / "cache").packed("test")
    path.unlink()
    with pytest.raises(UserError, match=r"Expected 2 files of the split 'test' in .* but found 1; let TensorFlow"):
        find_layout(root).split("test")


@pytest.mark.parametrize("key", ["id", "image", "label"])
def test_a_record_without_a_value_is_refused(key: str, root: Path, tmp_path: Path, example_class: type) -> None:
    example = example_class()
    for name in ("id", "image"):
        found = example.features.feature.add(key=name).value.bytes_list.value
        found.extend([] if name == key else [b"x"])
    example.features.feature.add(key="label").value.int64_list.value.extend([] if key == "label" else [1])
    with (root / "patch_camelyon" / "2.0.0" / "patch_camelyon-test.tfrecord-00000-of-00002").open("wb") as file:
        RecordWriter(file).write(example.SerializeToString())
    with pytest.raises(UserError, match=r"Expected a whole file in .*test\.tfrecord-00000-of-00002, but it cannot be"):
        PCamDataModule(root, cache_dir=tmp_path / "cache").packed("test")


def test_two_versions_are_not_guessed_between(root: Path) -> None:
    shutil.copytree(root / "patch_camelyon" / "2.0.0", root / "patch_camelyon" / "2.0.1")
    with pytest.raises(
        UserError, match=r"in one folder, but found them in .*2\.0\.0 and .*2\.0\.1; set root to the one"
    ):
        find_layout(root)
