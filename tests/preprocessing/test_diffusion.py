"""Diffusion scans: gradient tables of three formats, powder averages, and fits compared with known tensors."""

import subprocess
import sys

import dask
import dask.array as da
import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import mrhdata
from mrhdata.errors import DataError, FormatError, GridError
from mrhdata.preprocessing.diffusion import fibre_directions, kurtosis_maps, powder_average, tensor_maps
from mrhdata.preprocessing.gradients import Gradients, concatenate, read_bruker, read_fsl, read_mrtrix
from mrhdata.volume.construct import from_array
from tests.conftest import oblique_affine


def sphere(n, seed=0):
    """Return n random directions: (n, 3) unit vectors."""
    directions = np.random.default_rng(seed).normal(size=(n, 3))
    return directions / np.linalg.norm(directions, axis=1)[:, None]


def two_shells(n=30):
    """Return a table of two unweighted images and two shells of n directions, at b = 1 and 2 ms/um^2."""
    return Gradients([0, 0, *[1] * n, *[2] * n], [*[[0, 0, 0]] * 2, *sphere(n, 1), *sphere(n, 2)])


def attenuated(table, tensors, kurtosis=0.0):
    """Return signals (n, ...) of world tensors (..., 3, 3) in um^2/ms: ln S/S0 = -b D + b^2 D^2 K / 6."""
    diffusivity = np.einsum("ni,...ij,nj->n...", table.directions, tensors, table.directions)
    b = table.b.reshape(-1, *(1,) * (diffusivity.ndim - 1))
    return 500 * np.exp(-b * diffusivity + b**2 * diffusivity**2 * kurtosis / 6)


def tensor(values, main):
    """Return a tensor with three eigenvalues, the first along the world direction `main`."""
    rotation = Rotation.align_vectors([main], [[1, 0, 0]])[0].as_matrix()
    return rotation @ np.diag(values) @ rotation.T


def angle(a, b):
    """Return the angle between lines in degrees."""
    cosine = np.abs((np.asarray(a) * b).sum(-1)) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, 0, 1)))


@pytest.fixture(scope="module")
def random_tensors():
    """Return 5 x 4 x 3 voxels of random tensors on an oblique grid: scan, table, eigenvalues, main directions."""
    rng = np.random.default_rng(0)
    values = np.sort(rng.uniform(0.2, 2, (5, 4, 3, 3)))[..., ::-1] + [0.3, 0, 0]
    mains = sphere(60, 3).reshape(5, 4, 3, 3)
    tensors = np.array([tensor(v, m) for v, m in zip(values.reshape(-1, 3), mains.reshape(-1, 3), strict=True)])
    table = two_shells()
    signals = attenuated(table, tensors.reshape(5, 4, 3, 3, 3))
    affine = oblique_affine(angles=(30, -40, 25))[:, [2, 1, 0, 3]]
    return from_array(signals, affine=affine, dims="czyx"), table, values, mains


def test_tensor_maps_match_known_tensors(random_tensors):
    """FA, MD, AD and RD match the known eigenvalues, and fibres match the main directions in world space."""
    dwi, table, values, mains = random_tensors
    maps = tensor_maps(dwi, table, maps=["fa", "md", "ad", "rd"])
    mean = values.mean(-1)
    spread = ((values - mean[..., None]) ** 2).sum(-1)
    truth = {"fa": np.sqrt(1.5 * spread / (values**2).sum(-1)), "md": mean, "ad": values[..., 0]}
    truth["rd"] = values[..., 1:].mean(-1)
    errors = {name: float(np.abs(maps.sel(c=name).values - t).max()) for name, t in truth.items()}
    directions = np.moveaxis(fibre_directions(dwi, table).values, 0, -1)
    angle_error = float(angle(directions, mains).max())
    print(f"largest errors: {errors}, um^2/ms; fibres {angle_error:.2g} degrees")  # noqa: T201
    assert max(errors.values()) < 1e-4
    assert angle_error < 0.1
    assert maps.mrh.grid.same_as(dwi.mrh.grid)
    assert maps.mrh.space == dwi.mrh.space
    assert tensor_maps(dwi, table, maps=["md"]).attrs["units"] == "um2/ms"


def test_noise_hardly_changes_tensor_maps(random_tensors):
    """At a signal-to-noise ratio of 50, MD changes by less than 5 % and FA by less than 0.06 on average."""
    dwi, table, values, _ = random_tensors
    noise = np.random.default_rng(4).normal(size=(2, *dwi.shape)) * 10
    noisy_dwi = dwi.copy(data=np.hypot(dwi.values + noise[0], noise[1]))
    noisy, clean = (tensor_maps(v, table) for v in (noisy_dwi, dwi))
    errors = np.abs(noisy - clean).mean(["z", "y", "x"])
    assert float(errors.sel(c="md")) < 0.05 * values.mean()
    assert 0 < float(errors.sel(c="fa")) < 0.06


@pytest.mark.full
def test_kurtosis_maps_match_known_kurtosis():
    """MK, AK, RK and MD match isotropic diffusion with known kurtosis; another scheduler gives equal values."""
    table = two_shells()
    diffusivity, kurtosis = np.linspace(0.4, 0.9, 6), np.linspace(0.2, 1.2, 6)
    signals = attenuated(table, diffusivity[:, None, None] * np.eye(3), kurtosis)
    dwi = from_array(signals.reshape(-1, 1, 2, 3), spacing=(1, 1, 1))
    maps = kurtosis_maps(dwi, table, maps=["md", "mk", "ak", "rk"])
    np.testing.assert_allclose(maps.sel(c="md").values.ravel(), diffusivity, rtol=1e-3)
    for name in ("mk", "ak", "rk"):
        np.testing.assert_allclose(maps.sel(c=name).values.ravel(), kurtosis, atol=5e-3)
    with dask.config.set(scheduler="processes", num_workers=1):
        np.testing.assert_array_equal(maps.isel(x=slice(1)).values, maps.values[..., :1])


def test_maps_are_lazy_and_do_not_depend_on_block_size(random_tensors, monkeypatch):
    """Nothing is read before the values are needed, one voxel reads one block, and small blocks give the same maps."""
    from mrhdata.preprocessing import diffusion

    dwi, table, _, _ = random_tensors
    blocks_read = []
    data = da.from_array(dwi.values, chunks=(7, 2, 2, 3)).map_blocks(
        lambda b: blocks_read.append(b.shape) or b, meta=dwi.values
    )
    lazy = dwi.copy(data=data)
    monkeypatch.setattr(diffusion, "_BLOCK_BYTES", 4 * 62 * 6)
    maps = tensor_maps(lazy, table)
    means = powder_average(lazy, table)
    assert blocks_read == []
    assert max(np.prod(block) for block in np.broadcast_to(maps.data.chunksize[1:], (1, 3))) <= 6
    voxel = maps.isel(z=0, y=0, x=0).values
    assert 0 < len(blocks_read) < data.npartitions
    monkeypatch.undo()
    expected = tensor_maps(dwi, table)
    np.testing.assert_allclose(maps.values, expected.values, atol=1e-6)
    np.testing.assert_allclose(voxel, expected.values[:, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(means.values, powder_average(dwi, table).values, rtol=1e-6)


def test_powder_averages_images_along_the_time_axis(random_tensors):
    """Each shell is the mean of its images, which may lie along t as in NIfTI files."""
    dwi, table, _, _ = random_tensors
    means = powder_average(dwi.rename(c="t").drop_vars("t", errors="ignore"), table)
    assert means.c.values.tolist() == ["b0", "b1000", "b2000"]
    for name, rows in [("b0", slice(0, 2)), ("b1000", slice(2, 32)), ("b2000", slice(32, 62))]:
        np.testing.assert_allclose(means.sel(c=name), dwi.values[rows].mean(0), rtol=1e-5)
    assert means.mrh.grid.same_as(dwi.mrh.grid)


def test_tensor_maps_are_zero_in_masked_and_empty_voxels(random_tensors):
    """Voxels outside the mask, without signal or with NaN become 0; the other voxels do not change."""
    dwi, table, _, _ = random_tensors
    signals = dwi.values.copy()
    signals[:, 0, 0, 0], signals[5, 1, 1, 1] = 0, np.nan
    mask = dwi.isel(c=0, drop=True).astype(np.uint8) * 0 + 1
    mask[2] = 0
    masked = tensor_maps(dwi.copy(data=signals), table, mask=mask).values
    expected = tensor_maps(dwi, table).values
    zero = np.zeros(dwi.shape[1:], dtype=bool)
    zero[2], zero[0, 0, 0], zero[1, 1, 1] = True, True, True
    assert not masked[:, zero].any()
    np.testing.assert_allclose(masked[:, ~zero], expected[:, ~zero], atol=1e-6)
    with pytest.raises(GridError, match="shapes differ"):
        tensor_maps(dwi, table, mask=mask[:2])


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_fsl_table_gives_known_fibres_for_oblique_files(tmp_path, flip, order):
    """Files stored in any order and handedness give the world direction of the simulated fibre."""
    fibre, table = np.array([0.36, -0.48, 0.8]), two_shells()
    affine = oblique_affine(angles=(20, 35, -15), flip=flip)[:, [*order, 3]]
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    vectors = np.linalg.solve(axes, table.directions.T)
    if np.linalg.det(affine[:3, :3]) > 0:
        vectors[0] *= -1
    signals = attenuated(table, np.tile(tensor([1.7, 0.3, 0.3], fibre), (3, 2, 4, 1, 1)))
    image = nibabel.Nifti1Image(np.moveaxis(signals, 0, -1).astype(np.float32), affine)
    nibabel.save(image, tmp_path / "dwi.nii")
    np.savetxt(tmp_path / "dwi.bvec", vectors)
    np.savetxt(tmp_path / "dwi.bval", [1000 * table.b], fmt="%d")
    dwi = mrhdata.read(tmp_path / "dwi.nii")
    fsl_table = read_fsl(tmp_path / "dwi.bval", tmp_path / "dwi.bvec", dwi)
    np.testing.assert_allclose(fsl_table.directions, table.directions, atol=1e-6)
    np.testing.assert_allclose(fsl_table.b, table.b)
    directions = np.moveaxis(fibre_directions(dwi, fsl_table).values, 0, -1)
    assert angle(directions, fibre).max() < 0.1
    # The table refers to the file: it is the same for a volume that was then cropped and reversed.
    changed = dwi.isel(x=slice(None, None, -1), y=slice(1, None))
    changed_table = read_fsl(tmp_path / "dwi.bval", tmp_path / "dwi.bvec", changed)
    np.testing.assert_allclose(changed_table.directions, fsl_table.directions, atol=1e-12)


def test_fsl_vectors_match_a_hand_calculation(tmp_path):
    """(0.6, 0.8, 0) is the world line (-0.6, 0.8, 0) if x is stored to the left and if it is stored to the right."""
    (tmp_path / "b").write_text("0 1000\n")
    (tmp_path / "v").write_text("0 0.6\n0 0.8\nnan 0\n")
    for x in (-1, 1):
        volume = from_array(np.zeros((2, 2, 2)), affine=np.diag([x, 1, 1, 1]))
        table = read_fsl(tmp_path / "b", tmp_path / "v", volume)
        np.testing.assert_allclose(table.directions, [[0, 0, 0], [-0.6, 0.8, 0]])
    (tmp_path / "w").write_text("0 0 0\n0.6 0.8 0\n")
    np.testing.assert_array_equal(read_fsl(tmp_path / "b", tmp_path / "w", volume).directions, table.directions)


def test_directions_along_array_axes_and_after_rotation():
    """Components follow the axes of a reversed and an oblique volume; turning the brain turns the table."""
    table = Gradients([1, 1], [[1, 0, 0], [0, 0.6, 0.8]])
    volume = from_array(np.zeros((2, 3, 4)), affine=np.diag([-0.1, 0.2, 0.3, 1]))
    np.testing.assert_allclose(table.along(volume), [[0, 0, -1], [0.8, 0.6, 0]])
    np.testing.assert_allclose(table.along(volume.isel(y=slice(None, None, -1))), [[0, 0, -1], [0.8, -0.6, 0]])
    quarter_turn = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    np.testing.assert_allclose(table.turned(quarter_turn).directions, [[0, 1, 0], [-0.6, 0, 0.8]])
    affine = oblique_affine(angles=(30, 10, -30))
    oblique = from_array(np.zeros((2, 3, 4)), affine=affine)
    g = Gradients(np.ones(20), sphere(20))
    np.testing.assert_allclose(g.along(oblique)[:, ::-1], g.directions @ affine[:3, :3] / [0.1, 0.2, 0.3], atol=1e-12)
    with pytest.raises(GridError, match="rotation must be"):
        table.turned(2 * np.eye(3))


def test_bruker_tables_of_published_scans_match_the_authors_table(shared):
    """Each scan has two b0 and 30 directions; b is the trace, and directions agree within 3.2 degrees."""
    folder, volume = shared / "mrhnet" / "mr-parameters", from_array(np.zeros((2, 2, 2)), affine=np.eye(4))
    authors_table = read_mrtrix(folder / "grad_auto.txt")
    assert [(s.name, len(s.rows)) for s in authors_table.shells] == [("b0", 5), ("b3000", 30)]
    tables = [read_bruker(folder / f"dwi_b{b}_method", volume) for b in (2000, 5000)]
    for table, first_b, max_degrees in zip(tables, (1.91490403, 4.8143), (3.2, 1.5), strict=True):
        assert (len(table), table.shells[0].rows) == (32, (0, 1))
        assert [len(s.rows) for s in table.shells] == [2, 30]
        np.testing.assert_allclose(table.b[:3], [0.04347059, 0.04347059, first_b], rtol=1e-4)
        assert angle(table.directions[2:], authors_table.directions[5:]).max() < max_degrees
    combined = concatenate(tables)
    assert [(s.name, len(s.rows)) for s in combined.shells] == [("b0", 4), ("b1900", 30), ("b4800", 30)]
    shells = read_mrtrix(folder / "grad_nissl.txt").shells
    assert [(s.name, len(s.rows)) for s in shells] == [("b0", 8), ("b700", 40)]


METHOD = """##TITLE=Parameter List
##$PVM_DwNDiffExp=3
##$PVM_DwBMatImag=( 3, 3, 3 )
@9*(0) 360 480 0
$$ @vis= PVM_DwBMatImag
480 640 @2*(0) @2*(0)
1000 @8*(0)
##$PVM_DwEffBval=( 3 )
0 1000 1000
"""


def test_bruker_table_matches_a_hand_calculation(tmp_path):
    """Repeat counts and comments in an array are understood; directions follow the axes of the file in its order."""
    (tmp_path / "method").write_text(METHOD)
    upright = from_array(np.zeros((2, 2, 2)), affine=np.eye(4))
    table = read_bruker(tmp_path / "method", upright)
    np.testing.assert_allclose(table.b, [0, 1, 1])
    np.testing.assert_allclose(np.abs(table.directions), [[0, 0, 0], [0.6, 0.8, 0], [1, 0, 0]], atol=1e-12)
    assert table.directions[1, 0] * table.directions[1, 1] > 0
    # The first axis points to P, the second to S, the third to R.
    permuted = from_array(np.zeros((2, 2, 2)), affine=[[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    table = read_bruker(tmp_path / "method", permuted)
    np.testing.assert_allclose(np.abs(table.directions[1:]), [[0, 0.6, 0.8], [0, 1, 0]], atol=1e-12)
    assert table.directions[1, 1] * table.directions[1, 2] < 0


def test_damaged_gradient_tables_are_refused(tmp_path):
    """Missing files, words, wrong counts, weighted images without direction and volumes without axes are refused."""
    volume, path = from_array(np.zeros((2, 2, 2)), affine=np.eye(4)), tmp_path / "table"
    with pytest.raises(FormatError, match="cannot be read"):
        read_mrtrix(path)
    for text, message in [
        ("", "is empty"),
        ("1 2 x 4", "must be a table of numbers"),
        ("1 2 3 4\n1 2 3", "must be a table of numbers"),
        ("1 0 0", "rows of 3"),
    ]:
        path.write_text(text)
        with pytest.raises(FormatError, match=message):
            read_mrtrix(path)
    path.write_text("0 0 0 1000")
    with pytest.raises(DataError, match=r"image 0 has b = 1 ms/um\^2 but no direction"):
        read_mrtrix(path)
    with pytest.raises(FormatError, match="must hold three numbers for each"):
        read_fsl(path, path, volume)
    with pytest.raises(FormatError, match="has no PVM_DwBMatImag"):
        read_bruker(path, volume)
    for text in (
        METHOD.replace("1000 @8", "1000 @7"),
        METHOD.replace("@9*(0)", "@999999999*(0)"),
        METHOD.replace("640", "x"),
    ):
        path.write_text(text)
        with pytest.raises(FormatError, match=r"PVM_DwBMatImag in .* must hold \[3, 3, 3\] numbers"):
            read_bruker(path, volume)
    path.write_text(METHOD)
    with pytest.raises(GridError, match="does not record the axes"):
        read_bruker(path, from_array(np.zeros((2, 2, 2)), spacing=(1, 1, 1)))
    with pytest.raises(GridError, match="right angles"):
        read_bruker(
            path, from_array(np.zeros((2, 2, 2)), affine=[[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        )
    for b, g in [([1, 2], [[1, 0, 0]]), ([-1], [[1, 0, 0]]), ([np.nan], [[1, 0, 0]]), ([1], [[np.inf, 0, 0]])]:
        with pytest.raises(DataError, match=r"correct the table|must have shapes"):
            Gradients(b, g)


def test_mismatched_tables_and_unknown_maps_are_refused(random_tensors):
    """Wrong counts, too few directions or shells and unknown maps are refused; tables are read-only."""
    dwi, table, _, _ = random_tensors
    with pytest.raises(GridError, match="got 61 rows and a scan of"):
        powder_average(dwi, table[:61])
    flat = Gradients([0, *[1] * 10], [[0, 0, 0], *np.c_[sphere(10)[:, :2], np.zeros(10)]])
    with pytest.raises(DataError, match="10 weighted images determine 3 of the 6"):
        tensor_maps(dwi.isel(c=slice(11)), flat)
    with pytest.raises(DataError, match="with 1 shells"):
        tensor_maps(dwi.isel(c=slice(2, 32)), table[2:32])
    with pytest.raises(DataError, match="two weighted shells; got b1000"):
        kurtosis_maps(dwi.isel(c=slice(32)), table[:32])
    rows = [0, *range(2, 12), *range(32, 36)]
    with pytest.raises(DataError, match="14 weighted images determine 14 of the 15"):
        kurtosis_maps(dwi.isel(c=rows), table[rows])
    for maps in (["mk"], [], "fa"):
        with pytest.raises(DataError, match="maps must be a list of names from fa, md, ad, rd"):
            tensor_maps(dwi, table, maps=maps)
    with pytest.raises(ValueError, match="read-only"):
        table.b[0] = 1


@pytest.mark.full
def test_missing_dipy_is_reported_with_the_install_command():
    """Without dipy, the error names the command that installs it."""
    code = """
import sys
sys.modules["dipy"] = None
import numpy as np, mrhdata
from mrhdata.preprocessing.diffusion import tensor_maps
from mrhdata.preprocessing.gradients import Gradients
g = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 0]])
try:
    tensor_maps(mrhdata.volume.from_array(np.ones((7, 1, 1, 1)), spacing=(1, 1, 1)), Gradients([1] * 6 + [0], g))
except mrhdata.errors.DataError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "diffusion fits need dipy. Install it with pip install 'mrhdata[diffusion]'."
