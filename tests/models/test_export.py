"""Export: ONNX files give the results of the network, and BioImage.IO packages pass the official validator."""

import json
import logging
import warnings
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from mrhdata import models
from mrhdata.errors import ModelError
from mrhdata.models.export import export_bioimage, export_onnx
from mrhdata.models.spec import IntensityScale, predict_raw
from tests.conftest import FULL

NETWORKS = {
    "mrhnet": ({"in_channels": 3, "loop_blocks": 1}, {"axis": 1}, (2, 3, 9, 14), 1),
    "restorer": ({"width": 8, "blocks": 1}, {}, (1, 1, 10, 16), 1),
    "cells3d": ({"widths": (4, 4, 4, 4), "answer": "score"}, {}, (1, 1, 14, 20, 12), 1),
    "tissue2d_1_0": ({}, {"labels": (0, 1, 2)}, (1, 1, 30, 26), 3),
    "unet3d": ({"widths": (4, 8)}, {"labels": (0, 5)}, (1, 1, 18, 20, 24), 2),
    "fcn3d": ({}, {}, (1, 1, 21, 27, 27), 11),
    "cells3d_second": ({"widths": (4, 4, 8, 8)}, {}, (1, 1, 16, 20, 20), 2),
    "pssr": ({}, {"patch": (1, 32, 32)}, (1, 1, 32, 32), 1),
}


def network_with_scales(name):
    """Return a network with random weights and the specification of a trained one, and the shape of its input."""
    config, changes, shape, answers = NETWORKS[name]
    model = models.create(name, seed=1, **config).eval()
    scale = IntensityScale((100.0,) * shape[1], (30.0,) * shape[1])
    target = IntensityScale((2.0,) * answers, (0.5,) * answers)
    names = tuple(f"channel {i}" for i in range(shape[1]))
    model.spec = replace(model.spec, channels=names, inputs=scale, target=target, spacing_mm=(0.3, 0.1, 0.2), **changes)
    return model, shape


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS if FULL else ("mrhnet",))
def test_onnx_file_gives_the_results_of_the_network(tmp_path, name):
    """It takes raw voxels and returns the units of training, at sizes other than those of the export."""
    model, shape = network_with_scales(name)
    export_onnx(model, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    raw = np.random.default_rng(0).normal(100, 30, shape).astype(np.float32)
    (answer,) = session.run(["answer"], {"raw": raw})
    spec = model.spec
    x = torch.from_numpy(raw)
    with torch.inference_mode():
        # `physical` takes patches of a volume, so a 2D network gets the axis perpendicular to its planes.
        axis = 2 + (spec.axis or 0)
        expected = predict_raw(model, x) if model.ndim == 3 else predict_raw(model, x.unsqueeze(axis)).squeeze(axis)
    np.testing.assert_allclose(answer, expected.numpy(), atol=2e-4)
    stored_spec = json.loads(session.get_modelmeta().custom_metadata_map["mrhdata"])
    assert stored_spec["channels"] == list(spec.channels)


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_packages_pass_the_validator(tmp_path, name):
    """The validator of BioImage.IO checks the description, and the test output at several sizes and batches."""
    model, _ = network_with_scales(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bioimageio.core import test_model

        export_bioimage(model, tmp_path / "net.zip", title="A network of this test", author="A. Name")
        summary = test_model(tmp_path / "net.zip")
    assert summary.status == "passed", summary.errors


def test_untrained_networks_cannot_be_exported(tmp_path):
    """An existing file stays as it is."""
    out = tmp_path / "net.onnx"
    out.write_text("older")
    with pytest.raises(ModelError, match="only a trained network"):
        export_onnx(models.create("mrhnet", in_channels=1), out)
    assert out.read_text("utf-8") == "older"


@pytest.mark.full
def test_package_without_a_title_is_refused(tmp_path):
    """No file is written, and the log level of PyTorch is restored."""
    model, _ = network_with_scales("mrhnet")
    with pytest.raises(ModelError, match="does not accept the description"):
        export_bioimage(model, tmp_path / "net.zip", title="", author="A. Name")
    assert not (tmp_path / "net.zip").exists()
    assert logging.getLogger("torch.onnx").level != logging.ERROR
