"""Steps on volumes whose files leave geometry open: refused if a default decides the result, else a warning."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch

import mrhdata
from mrhdata.analysis.region_counts import count, regions_at
from mrhdata.datasets.subjects import Subject
from mrhdata.errors import GridError
from mrhdata.inference.detector import detect
from mrhdata.inference.input_check import check_geometry
from mrhdata.inference.peaks import Peaks
from mrhdata.inference.segmenter import on_network_grid, segment
from mrhdata.models.spec import IntensityScale, ModelSpec
from mrhdata.recipes import cells, restoration
from mrhdata.training.settings import TrainingConfig
from mrhdata.volume.assumptions import assume, assumed, geometry_attrs
from mrhdata.volume.construct import from_array
from tests.conftest import command

LENGTH = "the file states no voxel size, so 1 mm is used; pass spacing= and unit= (--spacing, --unit)"


def volume(*names, shape=(6, 7, 8), name="t1w", spacing=1.0, **attrs):
    """Return random values whose file did not state some properties."""
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    return assume(from_array(values, spacing=(spacing,) * 3, name=name, **attrs), *names)


@pytest.fixture
def warnings(caplog):
    """Function that returns the warnings so far, and forgets them."""

    def taken():
        messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        caplog.clear()
        return messages

    return taken


def convolution(**spec):
    """Return a network of one convolution with a specification."""
    network = torch.nn.Conv3d(1, 1, 3, padding=1).requires_grad_(False)
    scale = IntensityScale((0.0,), (1.0,))
    network.spec = ModelSpec("net", channels=("t1w",), inputs=scale, target=scale, **spec)
    return network


@pytest.mark.parametrize("name", ["spacing", "unit"])
def test_prediction_needs_lengths_that_the_network_learned_with(name):
    """A network without a training spacing takes any voxels."""
    unknown = volume(name)
    with pytest.raises(GridError, match=r"t1w: the file states no .*; pass .*unit=.*--unit.* to mrhdata.read"):
        mrhdata.predict(convolution(spacing_mm=(1, 1, 1)), unknown, mode="dense", progress=False)
    predicted = mrhdata.predict(convolution(), unknown, mode="dense", progress=False)
    assert assumed(predicted) == (name,)


def test_segmentation_and_its_training_need_lengths_and_sides(warnings):
    """Upright volumes of unknown orientation are a warning; labels that depend on the side are refused."""
    upright, location = ("upright", {"spacing_mm": [1, 1, 1]}), ("location", {})
    subject = Subject("01", {"t1w": volume("spacing")}, volume().astype(np.uint8))
    with pytest.raises(GridError, match="t1w: the file states no voxel size"):
        on_network_grid(subject, ModelSpec("net", prepare=(upright,)))
    network = mrhdata.models.create("tissue2d", classes=2, widths=(1,)).eval()
    one, two = (IntensityScale((0.0,) * n, (1.0,) * n) for n in (1, 2))
    network.spec = ModelSpec(
        "tissue2d", network.spec.config, ("t1w",), axis=0, inputs=one, target=two, labels=(0, 7), prepare=(upright,)
    )
    with pytest.raises(GridError, match="t1w: the file states no unit of length"):
        segment(network, volume("unit"), progress=False)
    labels = segment(network, volume("orientation", "values"), progress=False)
    assert assumed(labels) == ("orientation",)
    assert [message.partition(":")[0] for message in warnings()] == ["t1w of the network tissue2d"]
    with pytest.raises(GridError, match=r"t1w: the file states no orientation.* axes= \(--orientation"):
        check_geometry(ModelSpec("net", prepare=(upright, location)), {"t1w": volume("orientation")})


def test_planes_across_a_stack_need_an_orientation(warnings):
    """Coronal and sagittal planes have a direction; planes of a stack are those of the file."""
    for axis, number in ((0, 0), (1, 1), (2, 1), (None, 0)):
        check_geometry(ModelSpec("net", axis=axis), {"t1w": volume("orientation")})
        assert len(warnings()) == number


def test_detection_and_its_training_need_lengths(tmp_path):
    """The radius of a cell and the rules of annotations are in mm."""
    unknown = volume("spacing", shape=(12, 12, 12))
    with pytest.raises(GridError, match="t1w: the file states no voxel size"):
        detect(torch.nn.Identity(), unknown, tmp_path / "cells", peaks=Peaks(0.5, radius_mm=2), progress=False)
    brain = Subject("03", {"t1w": unknown}, points=np.zeros((1, 3)))
    with pytest.raises(GridError, match="03: t1w: the file states no voxel size"):
        cells.annotation_labels(brain, cells.AnnotationRules(1, 2, 3))


def test_restoration_needs_lengths_only_if_it_learned_with_them(tmp_path):
    """A stack of planes without spacing is restored by a network that learned from such stacks."""
    network = mrhdata.models.create("restorer", in_channels=1, width=4, blocks=1, scale=2)
    scale = IntensityScale((0.0,), (1.0,))
    spec = ModelSpec("restorer", network.spec.config, ("em",), (1, 8, 8), 0, inputs=scale, target=scale)
    network.spec = spec
    stack = volume("spacing", "orientation", shape=(2, 16, 16), name="em")
    assert assumed(restoration.restore(network, stack, tmp_path / "a.zarr", progress=False)) == (
        "spacing",
        "orientation",
    )
    network.spec = ModelSpec(**{**spec.__dict__, "spacing_mm": (1.0, 1.0, 1.0)})
    with pytest.raises(GridError, match="em: the file states no voxel size"):
        restoration.restore(network, stack, tmp_path / "b.zarr", progress=False)


def test_training_keeps_only_stated_lengths_and_the_units_of_the_target():
    """The spacing of files that do not state it is not part of the specification; maps have the target's units."""
    target = volume(name="r1", units="1/s")
    settings = TrainingConfig(epochs=1)
    for names, spacing in (((), (1.0, 1.0, 1.0)), (("unit",), None)):
        inputs = volume(*names)
        patches = mrhdata.patches(inputs, target, shape=3, plane="axial")
        network = mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1)
        mrhdata.fit(network, patches, patches, settings, progress=False)
        assert (network.spec.spacing_mm, network.spec.units) == (spacing, "1/s")
    assert mrhdata.predict(network, inputs, progress=False).attrs["units"] == "1/s"
    mask = mrhdata.predict(network, inputs, output=mrhdata.inference.Output(threshold=0.5), progress=False)
    assert "units" not in mask.attrs


@pytest.mark.parametrize("role", ["moving", "fixed"])
def test_registration_needs_lengths_of_both_volumes(role, warnings):
    """An orientation that is not stated is a warning, unless all orientations are tried."""
    shape = (8, 8, 8)
    pair = {"moving": volume(shape=shape), "fixed": volume(shape=shape)}
    with pytest.raises(GridError, match=f"{role}: the file states no voxel size"):
        mrhdata.register(**pair | {role: volume("spacing", shape=shape)}, kind="rigid")
    mrhdata.register(**pair | {role: volume("orientation", shape=shape)}, kind="rigid", start="world")
    assert [message.partition(":")[0] for message in warnings()] == [f"{role} of register"]


def test_registration_commands_take_what_a_file_does_not_state(tmp_path):
    """The command names the option in its message, and takes it."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "moving.tif", volume(shape=(8, 8, 8)).values, photometric="minisblack")
    mrhdata.write(volume(shape=(8, 8, 8)), tmp_path / "fixed.nii")
    words = ("register", tmp_path / "moving.tif", tmp_path / "fixed.nii", "-o", tmp_path / "t.h5", "--kind", "rigid")
    code, _, error = command(*words)
    assert code == 2
    assert f"moving: {LENGTH}" in error
    assert command(*words, "--spacing", "1", "--unit", "mm")[0] == 0


@pytest.mark.parametrize("grids", ["resample", "native"])
def test_patches_across_grids_warn_once_for_each_volume(grids, warnings):
    """Volumes of one grid, and volumes that state their geometry, give no warning."""
    fine = volume("orientation", "spacing", name="mt", shape=(12, 14, 16), spacing=0.5)
    mrhdata.patches({"t1w": volume(), "mt": fine}, fine, shape=2, grids=grids)
    (message,) = warnings()
    assert message == (
        f"input 'mt' of patches(grids={grids!r}): {LENGTH}; the file states no orientation, so its axes are assumed as "
        "stored; pass axes= (--orientation)"
    )
    mrhdata.patches([{"t1w": volume(), "mt": fine}] * 2, shape=2, grids=grids)
    assert [message.partition("(")[0] for message in warnings()] == [
        f"subject {n}: input 'mt' of patches" for n in "01"
    ]
    mrhdata.patches({"t1w": volume(), "mt": volume("unit")}, shape=2, grids=grids)
    mrhdata.patches({"t1w": volume(), "mt": volume(spacing=0.5, shape=(12, 14, 16))}, shape=2, grids=grids)
    assert warnings() == []


def test_prediction_across_grids_warns(warnings):
    """As patches do."""
    network = torch.nn.Conv3d(2, 1, 1).requires_grad_(False)
    inputs = {"t1w": volume(), "mt": volume("unit", spacing=0.5, shape=(12, 14, 16))}
    mrhdata.predict(network, inputs, mode="dense", grids="resample", progress=False)
    assert [message.partition(":")[0] for message in warnings()] == ["mt of predict(grids='resample')"]


def test_counts_and_regions_warn(warnings):
    """Cells are looked up by world points, and densities are per mm3."""
    labels = volume("orientation", name="regions").astype(np.uint8).assign_attrs(volume("orientation").attrs)
    labels.attrs["kind"] = "labels"
    count(pd.DataFrame({"X": [0.0], "Y": 0.0, "Z": 0.0}), labels)
    regions_at([[0, 0, 0]], labels)
    assert [message.partition(":")[0] for message in warnings()] == ["regions of count", "regions of regions_at"]


def test_sensitivity_warns_of_volumes_that_are_alike_by_default_only(warnings):
    """Lengths always; an orientation if other volumes state theirs."""
    cases = [(("spacing",), (), 1), (("orientation",), (), 1), (("orientation",), ("orientation",), 0)]
    for names, others, number in cases:
        contrasts = {"t1w": volume(*names), "t2w": volume(*others)}
        mrhdata.sensitivity(contrasts, volume(*others, name="af"), threshold="50%", blocks=2)
        assert len(warnings()) == number


def test_results_on_the_grid_of_a_volume_keep_what_is_known_of_it():
    """Its axes in the file and its assumptions, but not those about values."""
    source = assume(from_array(np.zeros((2, 2, 2)), affine=np.eye(4)), "values", "orientation")
    assert geometry_attrs(source) == {"source_axes": ["x", "y", "z"], "assumed": ["orientation"]}
    assert geometry_attrs(volume()) == {}
