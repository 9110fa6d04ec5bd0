"""The MATLAB reader: weights by name, connections, and the forward pass in the axes of the authors."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch

import mrhdata
from mrhdata.errors import ModelError
from mrhdata.models.matlab import CHANNELS

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")

PUBLISHED = [
    ("net_5layerV3Res_HRJG_allMRIs_Fluo.mat", 4, 482_369),
    ("net_10layerV3Res_HRJG_allMRIs_Fluo.mat", 9, 851_649),
]


def names_in_order(blocks):
    """Return the layers with weights in the order of the published table."""
    loops = [f"Conv_loop{i}{k}" for k in range(1, blocks + 1) for i in (1, 2)]
    return ["Conv1", "Conv2", "Conv3", "Conv3_1", *loops, "Conv4", "Conv5"]


def numpy_forward(weights, patch, blocks):
    """Return the published forward pass in MATLAB's layout: patch (h, w, in), kernels (h, w, in, out)."""

    def conv(name, x):
        kernel, bias = weights[name]
        kernel = kernel.reshape(3, 3, x.shape[2], -1)
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        out = np.zeros((*x.shape[:2], kernel.shape[3]))
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                out[i, j] = np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) + bias.ravel()
        return out

    relu2 = np.maximum(conv("Conv2", np.maximum(conv("Conv1", patch), 0)), 0)
    x = conv("Conv3_1", np.maximum(conv("Conv3", relu2), 0)) + relu2
    for k in range(1, blocks + 1):
        skip = np.maximum(x, 0)
        x = conv(f"Conv_loop2{k}", np.maximum(conv(f"Conv_loop1{k}", skip), 0)) + skip
    return conv("Conv5", np.maximum(conv("Conv4", np.maximum(x, 0)), 0))


def floats_in(value):
    """Return all single-precision arrays of a MATLAB object, depth first."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return [value]
    if isinstance(value, np.ndarray) and value.dtype.names:
        return [f for item in value.ravel() for name in value.dtype.names for f in floats_in(item[name])]
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [f for item in value.ravel() for f in floats_in(item)]
    return []


def weights_by_scipy(path, blocks):
    """Read weights and biases from the bytes of the object store without mat-io; they are in layer order."""
    from scipy.io import loadmat
    from scipy.io.matlab._mio5 import MatFile5Reader

    store = loadmat(path, variable_names=["__function_workspace__"])["__function_workspace__"].tobytes()
    reader = MatFile5Reader(io.BytesIO(bytes(124) + b"\x00\x01IM" + store[8:]), struct_as_record=True)
    reader.initialize_read()
    reader.mat_stream.seek(128)
    header, _ = reader.read_var_header()
    arrays = floats_in(reader.read_var_array(header, process=False))
    assert len(arrays) == 2 * len(names_in_order(blocks))
    return dict(zip(names_in_order(blocks), zip(arrays[::2], arrays[1::2], strict=True), strict=True))


def difference(model, weights, blocks, channels, seed=0):
    """Return the largest difference to the NumPy pass over eight patches, relative to the largest output."""
    patches = np.random.default_rng(seed).random((8, 3, 3, channels)).astype(np.float32)
    expected = np.stack([numpy_forward(weights, patch, blocks)[..., 0] for patch in patches])
    with torch.inference_mode():
        # The authors' h is x of mrhdata, their w is z.
        output = model(torch.from_numpy(patches.transpose(0, 3, 2, 1).copy()))[:, 0].numpy().transpose(0, 2, 1)
    return float(np.abs(output - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("name", "blocks", "count"), PUBLISHED)
def test_published_networks_agree_with_an_independent_reader(shared, name, blocks, count):
    """Parameter counts are as published, and the forward pass equals that of NumPy."""
    model = mrhdata.models.load_matlab(shared / "mrhnet" / name)
    weights = weights_by_scipy(shared / "mrhnet" / name, blocks)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(w.size + b.size for w, b in weights.values()) == count
    np.testing.assert_array_equal(model.conv1.weight[:, :, 2, 0].detach(), weights["Conv1"][0][0, 2].T)
    error = difference(model, weights, blocks, 67)
    print(f"{name}: {count:,} parameters, largest relative difference to NumPy {error:.2g}")  # noqa: T201
    assert error < 1e-4
    assert model.spec.channels == CHANNELS
    assert model.spec.config == {"in_channels": 67, "loop_blocks": blocks}


@pytest.mark.parametrize(("name", "blocks", "count"), PUBLISHED)
def test_shipped_networks_answer_as_the_published_files(shared, name, blocks, count):
    """Also the channels of the protocol are the same."""
    published = mrhdata.models.load_matlab(shared / "mrhnet" / name, maximum=100)
    shipped = mrhdata.models.load(f"mrhnet-af-{blocks + 1}", maximum=100)
    assert sum(p.numel() for p in shipped.parameters()) == count
    assert shipped.spec == published.spec
    assert shipped.spec.channels == CHANNELS
    patches = torch.from_numpy(np.random.default_rng(0).random((16, 67, 3, 3)).astype(np.float32))
    with torch.inference_mode():
        assert torch.equal(shipped(patches), published(patches))


def test_maximum_is_only_for_networks_without_a_scale(tmp_path):
    network = mrhdata.models.load("mrhnet-af-5", maximum=2)
    assert set(network.spec.inputs.factor) == {2.0}
    with pytest.raises(ModelError, match=r"^maximum must be left out for mrhnet .*; got 3$"):
        mrhdata.models.load("phantom-nf", maximum=3)
    with pytest.raises(ModelError, match=r"maximum must be a positive number; got nan"):
        mrhdata.models.load("mrhnet-af-5", maximum=float("nan"))


def test_published_protocol_has_67_channels():
    """Two shells of 2 b0 and 30 directions, then T2 and the MT pair, have unique names."""
    assert len(set(CHANNELS)) == 67
    assert CHANNELS[0] == "b2000_b0_1"
    assert CHANNELS[31:35] == ("b2000_d30", "b5000_b0_1", "b5000_b0_2", "b5000_d01")
    assert CHANNELS[63:] == ("b5000_d30", "t2", "mt_on", "mt_off")


def struct(**values):
    """Return a 1 x 1 MATLAB struct."""
    record = np.empty((1, 1), dtype=[(key, object) for key in values])
    for key, value in values.items():
        record[0, 0][key] = value
    return record


def column(values):
    """Return an n x 1 MATLAB cell array."""
    array = np.empty((len(values), 1), dtype=object)
    array[:, 0] = values
    return array


def connections(blocks):
    """Return pairs of connected layers as in the authors' files, with numbered inputs of additions."""
    pairs = [("InputLayer", "Conv1"), ("Conv1", "ReLU1"), ("ReLU1", "Conv2"), ("Conv2", "ReLU2")]
    pairs += [("ReLU2", "Conv3"), ("ReLU2", "add11/in2"), ("Conv3", "ReLU3"), ("ReLU3", "Conv3_1")]
    pairs += [("Conv3_1", "add11/in1")]
    last = "add11"
    for k in range(1, blocks + 1):
        pairs += [(last, f"ReLU_L1{k}"), (f"ReLU_L1{k}", f"Conv_loop1{k}"), (f"ReLU_L1{k}", f"add_loop{k}/in2")]
        pairs += [(f"Conv_loop1{k}", f"ReLU_L2{k}"), (f"ReLU_L2{k}", f"Conv_loop2{k}")]
        pairs += [(f"Conv_loop2{k}", f"add_loop{k}/in1")]
        last = f"add_loop{k}"
    pairs += [(last, "ReLU3_5"), ("ReLU3_5", "Conv4"), ("Conv4", "ReLU4"), ("ReLU4", "Conv5")]
    return [*pairs, ("Conv5", "FinalRegressionLayer")]


def random_weights(blocks, channels, seed=0):
    """Return random weights of all layers, scaled so that signals neither vanish nor explode."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name in names_in_order(blocks):
        into, out = (channels if name == "Conv1" else 64), (1 if name == "Conv5" else 64)
        kernel = (rng.normal(size=(3, 3, into, out)) / np.sqrt(9 * into)).astype(np.float32)
        # MATLAB drops last axes of length 1.
        weights[name] = (kernel[..., 0] if out == 1 else kernel, rng.normal(size=(1, 1, out)).astype(np.float32))
    return weights


def write_network(path, weights, pairs, stride=1.0, normalization=""):
    """Write a DAGNetwork to a MATLAB v7 file with the layout of the authors' files."""
    from matio import save_to_mat
    from matio.utils.matclass import MatlabOpaque

    def layer(name):
        properties = {"Version": 1.0, "Name": name}
        if name == "InputLayer":
            properties["Normalization"] = normalization
        if name in weights:
            kernel, bias = weights[name]
            properties |= {"Stride": np.full((1, 2), stride), "DilationFactor": np.ones((1, 2))}
            properties |= {"PaddingSize": np.ones((1, 4))}
            properties |= {"Weights": struct(Version=1.0, Value=kernel), "Bias": struct(Version=1.0, Value=bias)}
        return MatlabOpaque({"any": struct(**properties)}, "nnet.cnn.layer.Layer")

    names = dict.fromkeys(end.partition("/")[0] for pair in pairs for end in pair)
    data = np.empty((1, 2), dtype=object)
    data[0, 0], data[0, 1] = (column(list(ends)) for ends in zip(*pairs, strict=True))
    table = MatlabOpaque({"data": data, "varnames": np.array([["Source", "Destination"]], dtype=object)}, "table")
    network = struct(Version=1.0, Layers=column([layer(name) for name in names]), Connections=table)
    classes = ["DAGNetwork", "nnet.cnn.layer.Layer"]
    network = MatlabOpaque({"any": network}, "DAGNetwork")
    save_to_mat(path, {"net": network}, version="v7", saveobj_classes=classes)


@pytest.fixture(scope="module")
def small_network(tmp_path_factory):
    """Write a small network to a MATLAB file and return its path and its weights."""
    path, weights = tmp_path_factory.mktemp("matlab") / "net.mat", random_weights(2, 3)
    write_network(path, weights, connections(2))
    return path, weights


def test_weights_are_assigned_to_their_layers(small_network):
    """Kernels are transposed to the axes of mrhdata, and the forward pass is the published one."""
    path, weights = small_network
    model = mrhdata.models.load_matlab(path)
    for name, (kernel, bias) in weights.items():
        module_name = f"conv_{name[5:10]}.{int(name[10:]) - 1}" if "loop" in name else name.lower()
        state = model.state_dict()
        kernel = kernel.reshape(3, 3, kernel.shape[2], -1)
        for h, w in [(0, 2), (1, 0)]:
            np.testing.assert_array_equal(state[f"{module_name}.weight"][:, :, w, h], kernel[h, w].T)
        np.testing.assert_array_equal(state[f"{module_name}.bias"], bias.ravel())
    assert len(weights) == 10
    assert difference(model, weights, 2, 3) < 1e-5
    assert model.spec.channels == ("c1", "c2", "c3")


def test_prediction_equals_that_of_the_authors_patches(small_network, tmp_path):
    """Values are divided by one maximum, each voxel is the centre of its patch, and rows run along x."""
    path, weights = small_network
    values = np.random.default_rng(1).random((3, 5, 2, 6)).astype(np.float32) * 80  # (c, z, y, x)
    volume = mrhdata.volume.from_array(values, spacing=(1, 1, 1)).assign_coords(c=["c1", "c2", "c3"])
    model = mrhdata.models.load_matlab(path, maximum=80, target_maximum=200)
    mapped = mrhdata.predict(model, volume, tmp_path / "p.zarr", progress=False).squeeze()
    z, y, x = 2, 1, 3
    patch = values[:, z - 1 : z + 2, y, x - 1 : x + 2].transpose(2, 1, 0) / 80
    expected = 200 * numpy_forward(weights, patch, 2)[1, 1, 0]
    np.testing.assert_allclose(mapped.values[z, y, x], expected, rtol=1e-4)
    with pytest.raises(ModelError, match=r"was trained on .*'c1', 'c2', 'c3'.* but is given .*'t2'"):
        mrhdata.predict(model, volume.assign_coords(c=["t2", "c2", "c3"]), tmp_path / "q.zarr", progress=False)


def test_matlab_network_is_saved_and_loaded_unchanged(small_network, tmp_path):
    """Specification and weights are restored."""
    model = mrhdata.models.load_matlab(small_network[0], maximum=7)
    mrhdata.models.save(model, tmp_path / "net")
    loaded = mrhdata.models.load(tmp_path / "net")
    assert loaded.spec == model.spec
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_prediction_needs_a_maximum(small_network, tmp_path):
    """The published files lack the intensity scale, so the user must pass it as a positive number."""
    model = mrhdata.models.load_matlab(small_network[0])
    volume = mrhdata.volume.from_array(np.ones((3, 3, 1, 3)), spacing=(1, 1, 1)).assign_coords(c=["c1", "c2", "c3"])
    with pytest.raises(ModelError, match=r"pass maximum= \(--maximum\), the highest value of the scan"):
        mrhdata.predict(model, volume, tmp_path / "p.zarr", progress=False)
    with pytest.raises(ModelError, match="no intensity scales"):
        mrhdata.models.spec.predict_raw(model, torch.zeros(1, 3, 3, 1, 3))
    for scale in ({"maximum": 0}, {"maximum": float("nan")}, {"target_maximum": -1.0}):
        with pytest.raises(ModelError, match="must be a positive number"):
            mrhdata.models.load_matlab(small_network[0], **scale)


def test_other_networks_are_refused(small_network, tmp_path):
    """Skips start before the ReLU, the stride is 2, inputs are normalised, or weights are missing, misshapen or NaN."""
    _, weights = small_network
    path, pairs = tmp_path / "net.mat", connections(2)
    before = [("add11", b) if a == "ReLU_L11" and b.startswith("add") else (a, b) for a, b in pairs]
    write_network(path, weights, before)
    with pytest.raises(
        ModelError, match="2 loop blocks: its connections differ in ReLU_L11 to add_loop1, add11 to add"
    ):
        mrhdata.models.load_matlab(path)
    write_network(path, weights, pairs, stride=2.0)
    with pytest.raises(ModelError, match="stride, dilation and padding 1"):
        mrhdata.models.load_matlab(path)
    write_network(path, weights, pairs, normalization="zerocenter")
    with pytest.raises(ModelError, match="normalises by 'zerocenter'"):
        mrhdata.models.load_matlab(path)
    for bad in (
        {k: v for k, v in weights.items() if k != "Conv3"},
        weights | {"Conv2": (weights["Conv2"][0][:, :, :5], weights["Conv2"][1])},
        weights | {"Conv2": (weights["Conv2"][0] * np.float32("nan"), weights["Conv2"][1])},
    ):
        write_network(path, bad, pairs)
        with pytest.raises(ModelError, match="the weights are not those of MRH-Net"):
            mrhdata.models.load_matlab(path)


def test_damaged_files_are_refused(small_network, tmp_path):
    """Files are cut, not MATLAB files, have another kind of variable, or are missing."""
    import scipy.io

    good = small_network[0].read_bytes()
    scipy.io.savemat(tmp_path / "other.mat", {"net": np.ones((3, 3))})
    for name, content in [("cut.mat", good[: len(good) // 2]), ("text.mat", b"net" * 200), ("empty.mat", b"")]:
        (tmp_path / name).write_bytes(content)
    for name in ("cut.mat", "text.mat", "empty.mat", "other.mat"):
        with pytest.raises(ModelError, match="must contain a DAGNetwork called net"):
            mrhdata.models.load_matlab(tmp_path / name)
    with pytest.raises(ModelError, match="does not exist"):
        mrhdata.models.load_matlab(tmp_path / "none.mat")


def test_missing_mat_io_raises_an_error_with_the_install_command(small_network):
    """The message is one sentence."""
    code = f"""
import sys
sys.modules["matio"] = None
import mrhdata
try:
    mrhdata.models.load_matlab({str(small_network[0])!r})
except mrhdata.errors.ModelError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "reading MATLAB networks needs mat-io; pip install 'mrhdata[matlab]'"
