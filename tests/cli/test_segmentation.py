"""Training on label volumes and segmentation: single files, folders of cases, data sets of nnU-Net."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import mrhdata
from mrhdata.datasets.subjects import find_subjects
from mrhdata.errors import UnfamiliarError
from mrhdata.recipes import segmentation, tissue2d
from mrhdata.volume.construct import from_array
from tests.conftest import command as run


def slices_quickly(network="tissue2d_3_0", spacing_mm=(2.0, 1.0, 1.0)):
    """Return a recipe of two epochs on whole slices."""
    recipe = SLICES(network, spacing_mm)
    training = tuple(replace(stage, epochs=2) for stage in recipe.training)
    return replace(recipe, sampling=segmentation.Slices(), training=training)


SLICES = tissue2d.slices


@pytest.fixture(autouse=True)
def quick_recipe(monkeypatch):
    """Let commands train 2D networks with the quick recipe."""
    monkeypatch.setattr(tissue2d, "slices", slices_quickly)


@pytest.mark.full
def test_corrected_labels_are_not_scored_with_the_network_of_the_old_ones(tmp_path):
    """The folder of a run is refused once a label file of its study has changed."""
    for subject in range(3):
        labels = np.zeros((6, 16, 16), np.uint8)
        labels[1:5, 4:12, 4 + subject : 12] = 7
        for name in ("T1w", "seg"):
            (tmp_path / "study").mkdir(exist_ok=True)
            mrhdata.write(from_array(labels, spacing=(2, 1, 1)), tmp_path / "study" / f"sub-{subject}_{name}.nii")
    words = ["train", "segmentation", tmp_path / "study", "-o", tmp_path / "net", "--input", "t1w=T1w"]
    words += ["--labels", "seg", "--epochs", 1, "--recipe", "tissue2d_3_0"]
    assert run(*words)[0] == 0
    assert run(*words)[0] == 0
    mrhdata.write(from_array(labels[::-1], spacing=(2, 1, 1)), tmp_path / "study" / "sub-0_seg.nii", overwrite=True)
    code, _, err = run(*words)
    assert (code, "with other subjects, files or settings" in err) == (2, True), err


def train(study, folder, *more):
    words = ["train", "segmentation", study, "-o", folder / "net", "--input", "t1w=T1w", "--labels", "seg"]
    return run(*words, "--epochs", 1, *more)


def test_training_scores_and_labels_test_subjects(labelled_study, tmp_path):
    """Labels of the test subject are written in its own format; another recipe in the same folder is refused."""
    code, out, err = train(labelled_study, tmp_path, "--recipe", "tissue2d_3_0", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["training"], answer["validation"], answer["test"]) == (2, 1, 1)
    assert answer["labels"] == [0, 7]
    (written,) = (tmp_path / "net" / "labels").glob("*.mnc")
    own = mrhdata.read(labelled_study / written.name[:5] / f"{written.name[:5]}_T1w.mnc")
    assert mrhdata.read(written, kind="labels").mrh.grid.same_as(own.mrh.grid)
    assert written.with_suffix(".png").stat().st_size > 1000
    code, _, err = train(labelled_study, tmp_path, "--recipe", "tissue2d_0_0")
    assert (code, "holds another run: " in err, "loss" in err or "widths" in err or "recipe" in err) == (2, True, True)
    code, _, err = train(labelled_study, tmp_path, "--recipe", "unet5")
    assert (code, "--recipe must be one of unet" in err) == (2, True)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """Folder of three subjects, and of a small network with the labels 0 and 7 that was trained on them."""
    folder = tmp_path_factory.mktemp("segmenter")
    rng = np.random.default_rng(0)
    for subject in range(3):
        labels = np.zeros((6, 24, 24), np.uint8)
        labels[1:5, 6:18, 6 + subject : 18] = 7
        for name, values in {"T1w": labels + rng.normal(0, 1, labels.shape), "seg": labels}.items():
            volume = from_array(values.astype(np.uint8 if name == "seg" else np.float32), spacing=(2, 1, 1))
            mrhdata.write(volume, folder / f"sub-{subject}_{name}.nii")
    subjects = find_subjects(folder, {"t1w": "T1w"}, "seg")
    model = segmentation.train(slices_quickly(), subjects[:2], subjects[2:], progress=False).model
    mrhdata.models.save(model, folder / "net")
    return folder


def test_segment_writes_labels_scores_and_region_statistics(segmenter, tmp_path):
    """Existing output, a wrong format and a ground truth of another grid are found before anything is computed."""
    image, truth = segmenter / "sub-1_T1w.nii", segmenter / "sub-1_seg.nii"
    words = ["segment", segmenter / "net", image]
    extra = ["--montage", tmp_path / "m.png", "--region-stats", tmp_path / "r.csv", "--ground-truth", truth]
    code, out, err = run(*words, "-o", tmp_path / "l.nii.gz", *extra, "--json")
    assert code == 0, err
    assert set(json.loads(out)["dice"]) == {"7"}
    assert (tmp_path / "m.png").stat().st_size > 1000
    assert (tmp_path / "r.csv").read_text("utf-8").splitlines()[0] == "label,name,mean,sd,median,volume_mm3"
    code, _, err = run(*words, "-o", tmp_path / "l.nii.gz")
    assert (code, "exists" in err) == (2, True)
    mrhdata.write(mrhdata.read(truth, kind="labels").isel(z=slice(1, None)), tmp_path / "cut.nii")
    code, _, err = run(*words, "-o", tmp_path / "again.nii", "--ground-truth", tmp_path / "cut.nii")
    assert (code, "'truth' does not lie on the grid of 'sub-1_T1w': shapes differ" in err) == (2, True)
    assert not (tmp_path / "again.nii").exists()
    code, _, err = run(*words, "-o", tmp_path / "l.mgz")
    assert (code, "l.mgz cannot be written" in err) == (2, True)


@pytest.fixture
def images_and_labels(segmenter, tmp_path):
    """Folders imagesTs and labelsTs as nnU-Net has them, of two cases in two formats."""
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "labelsTs").mkdir()
    for subject, ending in enumerate(("nii.gz", "mnc")):
        image, labels = (segmenter / f"sub-{subject}_{name}.nii" for name in ("T1w", "seg"))
        mrhdata.write(mrhdata.read(image), tmp_path / "imagesTs" / f"head_00{subject}_0000.{ending}")
        mrhdata.write(mrhdata.read(labels, kind="labels"), tmp_path / "labelsTs" / f"head_00{subject}.nii.gz")
    return tmp_path


def test_segment_labels_each_case_of_a_folder(segmenter, images_and_labels):
    """Every case gives labels of its name and format, equal to those of the file; Dice is pooled over cases."""
    root = images_and_labels
    words = ["segment", segmenter / "net", root / "imagesTs", "-o", root / "out", "--ground-truth", root / "labelsTs"]
    words += ["--montage", root / "png", "--region-stats", root / "csv"]
    code, out, err = run(*words, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["cases"], answer["labels"], set(answer["dice"])) == (2, [0, 7], {"7"})
    names = sorted(path.name for path in (root / "out").iterdir())
    assert names == ["cases.json", "head_000.nii.gz", "head_001.mnc", "scores.csv"]
    for folder, ending in (("png", "png"), ("csv", "csv")):
        assert sorted(p.name for p in (root / folder).iterdir()) == [f"head_00{i}.{ending}" for i in range(2)]
    single = root / "single.nii.gz"
    assert run("segment", segmenter / "net", root / "imagesTs" / "head_000_0000.nii.gz", "-o", single)[0] == 0
    labels = mrhdata.read(root / "out" / "head_000.nii.gz", kind="labels")
    np.testing.assert_array_equal(labels, mrhdata.read(single, kind="labels"))
    scores = pd.read_csv(root / "out" / "scores.csv")
    assert scores.subject.tolist() == ["head_000", "head_001"]
    truth = mrhdata.read(root / "labelsTs" / "head_000.nii.gz", kind="labels")
    both = ((labels == 7) & (truth.mrh.like(labels) == 7)).sum()
    assert scores.dice[0] == pytest.approx(float(2 * both / ((labels == 7).sum() + (truth == 7).sum())))


def test_segment_on_a_folder_resumes(segmenter, images_and_labels):
    root = images_and_labels
    words = ["segment", segmenter / "net", root / "imagesTs", "-o", root / "out"]
    assert run(*words)[0] == 0
    kept, lost = root / "out" / "head_000.nii.gz", root / "out" / "head_001.mnc"
    time = kept.stat().st_mtime_ns
    lost.unlink()
    assert run(*words)[0] == 0
    assert (kept.stat().st_mtime_ns, lost.exists()) == (time, True)


def test_segment_needs_a_ground_truth_for_each_case(segmenter, images_and_labels):
    root = images_and_labels
    (root / "labelsTs" / "head_001.nii.gz").unlink()
    words = ["segment", segmenter / "net", root / "imagesTs", "-o", root / "out"]
    code, _, err = run(*words, "--ground-truth", root / "labelsTs")
    assert (code, "has no labels of head_001; name its files as the cases" in err) == (2, True), err
    assert not (root / "out").exists()


@pytest.fixture
def nnunet_dataset(labelled_study, tmp_path):
    """The four subjects as a data set of nnU-Net."""
    dataset = tmp_path / "Dataset001_Cuboids"
    for folder in ("imagesTr", "labelsTr"):
        (dataset / folder).mkdir(parents=True)
    content = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "cuboid": 7}, "file_ending": ".nii.gz"}
    (dataset / "dataset.json").write_text(json.dumps(content))
    for subject in range(4):
        image, labels = (labelled_study / f"sub-{subject}" / f"sub-{subject}_{n}.mnc" for n in ("T1w", "seg"))
        mrhdata.write(mrhdata.read(image), dataset / "imagesTr" / f"box_{subject}_0000.nii.gz")
        mrhdata.write(mrhdata.read(labels, kind="labels"), dataset / "labelsTr" / f"box_{subject}.nii.gz")
    return dataset


@pytest.mark.full
def test_folds_of_an_nnunet_data_set_print_a_table_of_dice(nnunet_dataset, tmp_path):
    """A row for each fold and one for all, equal to the scores that each fold wrote; JSON has the same numbers."""
    words = ["train", "segmentation", nnunet_dataset, "-o", tmp_path / "net", "--folds", 2, "--epochs", 1]
    words += ["--recipe", "tissue2d_3_0"]
    code, out, err = run(*words)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[:2] == ["Dice of each fold", "fold  subjects  7 cuboid   mean"]
    rows = [line.split() for line in lines[2:5]]
    assert [row[:2] for row in rows] == [["1", "2"], ["2", "2"], ["all", "4"]]
    for row in rows[:2]:
        scores = pd.read_csv(tmp_path / "net" / f"fold-{row[0]}" / "scores.csv", dtype={"subject": str})
        assert float(row[2]) == float(row[3]) == round(scores.dice.mean(), 4)
    code, out, err = run(*words, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["dice_by_fold"] == {row[0]: {"7": float(row[2])} for row in rows[:2]}
    assert answer["subjects"] == 4


def test_patterns_are_needed_unless_a_data_set_has_them(labelled_study, nnunet_dataset, tmp_path):
    code, _, err = run("train", "segmentation", labelled_study, "-o", tmp_path / "net", "--labels", "seg")
    assert (code, "pass --input CHANNEL=PATTERN and --labels PATTERN" in err) == (2, True), err
    code, _, err = run("train", "segmentation", nnunet_dataset, "-o", tmp_path / "net", "--labels", "seg")
    assert (code, "leave out --input and --labels" in err) == (2, True), err
    assert not (tmp_path / "net").exists()


@pytest.fixture
def named_network(segmenter, tmp_path):
    """The network, whose label 7 has a name."""
    model = mrhdata.models.load(segmenter / "net")
    model.spec = replace(model.spec, label_names=("background", "cuboid"))
    mrhdata.models.save(model, tmp_path / "named")
    return tmp_path / "named"


def test_names_and_colours_are_written_next_to_labels(segmenter, named_network, tmp_path):
    """As a table of BIDS; an existing table is not replaced without being asked."""
    words = ["segment", named_network, segmenter / "sub-1_T1w.nii", "-o", tmp_path / "own.labels.nii.gz"]
    code, out, err = run(*words, "--region-stats", tmp_path / "r.csv", "--montage", tmp_path / "m.png", "--json")
    assert code == 0, err
    assert json.loads(out)["names"] == str(tmp_path / "own.labels.tsv")
    table = pd.read_csv(tmp_path / "own.labels.tsv", sep="\t")
    assert table.to_dict("records") == [
        {"index": 0, "name": "background", "color": "#000000"},
        {"index": 7, "name": "cuboid", "color": "#1f77b4"},
    ]
    assert pd.read_csv(tmp_path / "r.csv").name.tolist() == ["cuboid"]
    (tmp_path / "own.labels.nii.gz").unlink()
    code, _, err = run(*words)
    assert (code, "own.labels.tsv exists" in err) == (2, True), err
    assert not (tmp_path / "own.labels.nii.gz").exists()


def test_segment_takes_several_files_and_a_bids_data_set(segmenter, named_network, tmp_path):
    files = [segmenter / f"sub-{subject}_T1w.nii" for subject in range(2)]
    code, _, err = run("segment", named_network, *files, "-o", tmp_path / "several")
    assert code == 0, err
    names = {path.name for path in (tmp_path / "several").iterdir()}
    assert names == {"cases.json", "dseg.tsv", "sub-0_T1w.nii", "sub-1_T1w.nii"}
    anat = tmp_path / "bids" / "sub-1" / "anat"
    anat.mkdir(parents=True)
    mrhdata.write(mrhdata.read(files[1]), anat / "sub-1_T1w.nii.gz")
    mrhdata.write(mrhdata.read(segmenter / "sub-1_seg.nii", kind="labels"), anat / "sub-1_dseg.nii.gz")
    code, _, err = run("segment", named_network, tmp_path / "bids", "-o", tmp_path / "derived")
    assert code == 0, err
    labels = mrhdata.read(tmp_path / "derived" / "sub-1_desc-T1w_dseg.nii.gz", kind="labels")
    np.testing.assert_array_equal(labels, mrhdata.read(tmp_path / "several" / "sub-1_T1w.nii", kind="labels"))
    code, _, err = run("segment", named_network, files[0], files[0], "-o", tmp_path / "same")
    assert (code, "files must differ in their names" in err) == (2, True), err


def test_predicted_dice_is_printed_and_listed_lowest_first(segmenter, named_network, tmp_path, monkeypatch):
    """A network with a quality model attaches its predictions to the labels."""
    from mrhdata.inference import segmenter as module

    values = iter([0.9, 0.7, 0.8])

    def segmented(*arguments, **options):
        labels = plain(*arguments, **options)
        dice = next(values)
        report = {"predicted_dice": dice, "error": 0.04, "labels": {"cuboid": dice}, "unusual_extents": []}
        return labels.assign_attrs(quality=report | {"contrast": "inverted"})

    plain = module.segment
    monkeypatch.setattr(module, "segment", segmented)
    files = [segmenter / f"sub-{subject}_T1w.nii" for subject in range(2)]
    code, out, err = run("segment", named_network, files[0], "-o", tmp_path / "l.nii.gz")
    assert code == 0, err
    assert "0.90, within 0.04 on average; lowest: cuboid 0.90" in out
    assert "shown inverted" in out
    code, out, err = run("segment", named_network, *files, "-o", tmp_path / "several", "--json")
    assert code == 0, err
    table = pd.read_csv(json.loads(out)["quality"])
    assert table.case.tolist() == ["sub-0_T1w", "sub-1_T1w"]
    assert table.predicted_dice.tolist() == [0.7, 0.8]
    assert table.cuboid.tolist() == [0.7, 0.8]


def test_refused_cases_are_listed_and_the_others_are_labelled(segmenter, named_network, tmp_path, monkeypatch):
    from mrhdata.inference import segmenter as module

    def segmented(model, volumes, **options):
        if float(volumes["t1w"].values.max()) > 0:
            return plain(model, volumes, **options)
        error = UnfamiliarError("the volume must be of a kind that the network knows. Take another")
        error.quality = {"predicted_dice": 0.1, "labels": {"cuboid": 0.1}}
        raise error

    plain = module.segment
    monkeypatch.setattr(module, "segment", segmented)
    image = mrhdata.read(segmenter / "sub-0_T1w.nii")
    mrhdata.write(image.copy(data=np.zeros_like(image.values)), tmp_path / "empty.nii")
    files = [tmp_path / "empty.nii", segmenter / "sub-0_T1w.nii"]
    code, _, err = run("segment", named_network, *files, "-o", tmp_path / "out")
    assert (code, "1 of 2 cases have an error" in err, "case empty: the volume must be" in err) == (2, True, True), err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"cases.json", "dseg.tsv", "quality.csv", "sub-0_T1w.nii"}
    table = pd.read_csv(tmp_path / "out" / "quality.csv")
    assert table[["case", "predicted_dice", "refused"]].to_dict("records") == [
        {"case": "empty", "predicted_dice": 0.1, "refused": True}
    ]


def test_labels_of_another_voxel_size(segmenter, tmp_path):
    """Labels are those of the resampled volume."""
    image, network = segmenter / "sub-1_T1w.nii", segmenter / "net"
    words = ["-o", tmp_path / "fine.nii.gz", "--region-stats", tmp_path / "r.csv", "--montage", tmp_path / "m.png"]
    code, _, err = run("segment", network, image, "--label-spacing", "1,0.5,0.5", *words)
    assert code == 0, err
    volume = mrhdata.resample(mrhdata.read(image), spacing_mm=(1, 0.5, 0.5))
    labels = mrhdata.read(tmp_path / "fine.nii.gz", kind="labels")
    assert labels.mrh.grid.same_as(volume.mrh.grid)
    expected = mrhdata.segment(mrhdata.models.load(network), volume, progress=False)
    np.testing.assert_array_equal(labels, expected)
    code, _, err = run("segment", network, image, "--label-spacing", "0", "-o", tmp_path / "none.nii.gz")
    assert (code, "spacing_mm must be one positive number" in err) == (2, True), err
