import numpy as np
import pytest
from matplotlib.image import imread

from mrhdata.errors import FormatError, ParameterError
from mrhdata.synthesis import Anatomy, SynthesisConfig, Synthesizer
from mrhdata.viz.contact_sheets import contact_sheet
from mrhdata.volume.construct import from_array


@pytest.fixture
def synthesizer():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[4:16, 4:16, 4:16] = 1
    return Synthesizer([labels], SynthesisConfig.exact(), Anatomy.of_labels([1]), spacing_mm=(1, 1, 1))


def test_a_sheet_has_every_sample_and_real_slices_among_them(synthesizer, tmp_path):
    """Five samples and three slices of a volume fill two rows of four pictures."""
    real = from_array(np.linspace(0, 1, 6 * 8 * 10, dtype=np.float32).reshape(6, 8, 10), spacing=(2, 1, 1))
    path = tmp_path / "sheet.png"
    contact_sheet(synthesizer, path, count=5, size=32, columns=4, real={"ramp": real})
    picture = imread(path)
    assert picture.shape[:2] == (2 * 36, 4 * 36)
    for row in range(2):
        for column in range(4):
            tile = picture[row * 36 : row * 36 + 32, column * 36 : column * 36 + 32, :3]
            assert tile.std() > 0.05


def test_real_slices_are_upright(synthesizer, tmp_path):
    """A bright top in world space is drawn at the top, for a volume that is stored from superior to inferior."""
    values = np.zeros((12, 12, 12), np.float32)
    values[:3] = 1  # the first planes, which are superior
    affine = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    path = tmp_path / "sheet.png"
    contact_sheet(
        synthesizer, path, count=1, size=24, columns=4, real={"top": from_array(values, affine=affine)}, names=False
    )
    coronal = [imread(path)[:24, 28 * k : 28 * k + 24, 0] for k in range(4)]
    tops = [tile[:4].mean() > 0.9 > 0.1 > tile[-4:].mean() for tile in coronal]
    assert sum(tops) == 2  # coronal and sagittal


def test_bad_arguments(synthesizer, tmp_path):
    """Each message has the expected value, the actual one and the remedy."""
    with pytest.raises(FormatError, match=r"path must end in .png; got .*sheet.jpg"):
        contact_sheet(synthesizer, tmp_path / "sheet.jpg")
    with pytest.raises(ParameterError, match="count must be 1 or more; got 0"):
        contact_sheet(synthesizer, tmp_path / "sheet.png", count=0)
