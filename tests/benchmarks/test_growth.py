"""The picture of growth."""

from PIL import Image

from ctmasknet.benchmarks.growth import AXES, draw_growth


def test_picture_has_every_axis(tmp_path):
    axes = {
        axis: [
            {"value": value, "images_per_hour": 1000.0 * value, "peak_memory_mb": 800.0 + value}
            for value in values
        ]
        for axis, values in AXES.items()
    }
    draw_growth({"axes": axes}, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.width > 200 * len(AXES)
        assert len(picture.convert("L").getcolors()) > 10
