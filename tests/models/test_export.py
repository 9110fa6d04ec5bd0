"""Networks for other programs: the same answers there, and packages that their validator takes."""

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
from mrhdata.models.spec import Scale, physical
from tests.conftest import FULL

NETWORKS = {
    "mrhnet": ({"in_channels": 3, "blocks": 1}, {"axis": 1}, (2, 3, 9, 14), 1),
    "restorer": ({"width": 8, "blocks": 1}, {}, (1, 1, 10, 16), 1),
    "cells3d": ({"widths": (4, 4, 4, 4), "answer": "score"}, {}, (1, 1, 14, 20, 12), 1),
    "tissue2d_1_0": ({}, {"labels": (0, 1, 2)}, (1, 1, 30, 26), 3),
    "unet3d": ({"widths": (4, 8)}, {"labels": (0, 5)}, (1, 1, 18, 20, 24), 2),
    "fcn3d": ({}, {}, (1, 1, 21, 27, 27), 11),
    "cells3d_second": ({"widths": (4, 4, 8, 8)}, {}, (1, 1, 16, 20, 20), 2),
    "pssr": ({}, {"patch": (1, 32, 32)}, (1, 1, 32, 32), 1),
}


def trained(name):
    """Random weights that say what they were trained on."""
    config, told, shape, answers = NETWORKS[name]
    model = models.create(name, seed=1, **config).eval()
    scale = Scale((100.0,) * shape[1], (30.0,) * shape[1])
    target = Scale((2.0,) * answers, (0.5,) * answers)
    names = tuple(f"channel {i}" for i in range(shape[1]))
    model.spec = replace(model.spec, channels=names, inputs=scale, target=target, spacing_mm=(0.3, 0.1, 0.2), **told)
    return model, shape


@pytest.mark.parametrize("name", NETWORKS if FULL else ("mrhnet",))
def test_onnx_answers_as_the_network_does(tmp_path, name):
    """Raw voxels in, units of training out, at sizes other than those of the export."""
    model, shape = trained(name)
    export_onnx(model, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    raw = np.random.default_rng(0).normal(100, 30, shape).astype(np.float32)
    (answer,) = session.run(["answer"], {"raw": raw})
    spec = model.spec
    given = torch.from_numpy(raw)
    with torch.inference_mode():
        # Through the way that volumes take, with the axis of planes.
        axis = 2 + (spec.axis or 0)
        expected = physical(model, given) if model.ndim == 3 else physical(model, given.unsqueeze(axis)).squeeze(axis)
    np.testing.assert_allclose(answer, expected.numpy(), atol=2e-4)
    held = json.loads(session.get_modelmeta().custom_metadata_map["mrhdata"])
    assert held["channels"] == list(spec.channels)


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_packages_pass_the_validator(tmp_path, name):
    """BioImage.IO's own: the description, and the test input's answer at several sizes and batches."""
    model, _ = trained(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bioimageio.core import test_model

        export_bioimage(model, tmp_path / "net.zip", title="A network of this test", author="A. Name")
        summary = test_model(tmp_path / "net.zip")
    assert summary.status == "passed", summary.errors


def test_what_cannot_be_exported(tmp_path):
    """Without scales there are no units; the file that was there is left."""
    out = tmp_path / "net.onnx"
    out.write_text("older")
    with pytest.raises(ModelError, match="only a trained network"):
        export_onnx(models.create("mrhnet", in_channels=1), out)
    assert out.read_text("utf-8") == "older"


@pytest.mark.full
def test_a_package_has_a_title(tmp_path):
    """Without one there is none, and PyTorch's messages are as loud as before."""
    model, _ = trained("mrhnet")
    with pytest.raises(ModelError, match="does not accept the description"):
        export_bioimage(model, tmp_path / "net.zip", title="", author="A. Name")
    assert not (tmp_path / "net.zip").exists()
    assert logging.getLogger("torch.onnx").level != logging.ERROR
