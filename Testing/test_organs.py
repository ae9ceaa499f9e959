"""No brain anywhere: three organs in an ellipsoid, two modalities, from masks to volumes, by commands and panel."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench.driver import MODULE, application, generate  # noqa: F401
from typer.testing import CliRunner

import slicer  # isort: skip

from MedDPMLib.cli.app import app
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import read_volume, write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.scheme_files import read_scheme
from MedDPMLib.models.bundle import read_card
from MedDPMLib.recipes.recipe import load_recipe, recipe_toml
from MedDPMLib.scene import painting, volumes

MODALITIES = ("ct", "mr-dixon")
ORGANS = {10: "Liver", 20: "Spleen", 30: "Kidney"}

#: A trunk of 60 cm: no brain is so large. Voxels of 20 x 20 x 30 mm, i to the right.
PLACE = Geometry((24, 20, 18), np.diag([20.0, 20, 30, 1]) + np.eye(4)[3] * np.array([[-310.0], [200], [1000], [0]]))


def trunk(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Images of an ellipsoid with three organs in it, and their mask."""
    generator = np.random.default_rng(seed)
    k, j, i = np.indices(PLACE.shape)
    body = ((k - 8.5) / 8) ** 2 + ((j - 9.5) / 9) ** 2 + ((i - 11.5) / 11) ** 2 < 1
    labels = np.zeros(PLACE.shape, np.uint8)
    for value, (center, radius) in zip(ORGANS, (((9, 9, 16), 5), ((10, 12, 6), 3), ((5, 12, 10), 2)), strict=True):
        labels[sum((axis - at) ** 2 for axis, at in zip((k, j, i), center, strict=True)) < radius**2] = value
    images = {
        modality: np.where(body, 100 + 30 * (number + 1) * (labels.astype(int) // 10), -1000)
        + generator.normal(0, 3, body.shape)
        for number, modality in enumerate(MODALITIES)
    }
    return images, labels


def meddpm(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of cases, and a model that was trained on them for two iterations, installed."""
    folder = tmp_path_factory.mktemp("organs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDDPM_MODELS", str(folder / "models"))
        patch.setenv("OMP_NUM_THREADS", "1")
        for seed in (1, 2):
            images, labels = trunk(seed)
            for modality, image in images.items():
                write_nifti(
                    folder / "cases" / "images" / f"case{seed}_{modality}.nii.gz",
                    Volume(image.astype(np.float32), PLACE),
                )
            write_nifti(folder / "cases" / "masks" / f"case{seed}.nii.gz", Volume(labels, PLACE))
        meddpm("labels", "new", folder / "cases" / "masks", "--out", folder / "organs.toml", "--name", "organs")
        text = (folder / "organs.toml").read_text()
        for value, name in ORGANS.items():
            text = text.replace(f'"Label {value}"', f'"{name}"')
        (folder / "organs.toml").write_text(text)
        assert "is valid" in meddpm("labels", "check", folder / "organs.toml")
        meddpm(
            "prepare", folder / "cases", "--scheme", folder / "organs.toml", "--modalities", ",".join(MODALITIES),
            "--size", "24,24,16", "--spacing", "20,20,35", "--orientation", "RAS", "--out", folder / "dataset",
            "--workers", 1,
        )  # fmt: skip
        recipe = load_recipe(
            "brats-compact",
            [
                f"scheme={folder / 'organs.toml'}",
                'modalities=["ct", "mr-dixon"]',
                "dataset_grid={size=[24, 24, 16], spacing=[20.0, 20.0, 35.0], orientation='RAS'}",
                "network.channels=[8, 16]",
                "stages=[{size=[24, 24, 16], iterations=2, batch=1}]",
                "training.warm_up=0",
                "monitor={checkpoint_every=2, keep=1, montage_every=2}",
            ],
        )
        (folder / "recipe.toml").write_text(recipe_toml(recipe))
        (folder / "organs.toml").unlink()  # from here on everything carries its labels itself
        meddpm(
            "train", folder / "dataset", "--recipe", folder / "recipe.toml", "--run", folder / "run", "--device", "cpu",
            "--precision", "float32", "--set", "name=organs",
        )  # fmt: skip
        meddpm("models", "export", folder / "run", folder / "organs.safetensors")
        meddpm("models", "import", folder / "organs.safetensors", "--name", "organs")
        yield folder


def test_the_scheme_travels_in_dataset_recipe_and_bundle(world):
    card = read_card(world / "models" / "organs.safetensors")
    assert card.modalities == MODALITIES and card.grid.orientation == "RAS"
    assert [(label.value, label.name, label.role) for label in card.scheme.labels] == [
        (value, name, None) for value, name in ORGANS.items()
    ]
    assert load_recipe(world / "run" / "recipe.toml").label_scheme == card.scheme
    assert load_recipe(world / "recipe.toml").grid == card.grid
    assert list((world / "run" / "montages").glob("*.png"))


def test_the_dataset_holds_what_was_in_the_cases(world):
    images, labels = trunk(1)
    prepared = read_volume(world / "dataset" / "labelsTr" / "case1.nii.gz")
    assert prepared.geometry.orientation == "RAS" and set(np.unique(prepared.array)) == {0, *ORGANS}
    # The middle of the labels is the middle of the grid, to a voxel.
    found = PLACE.to_ras(np.argwhere(labels)[:, ::-1])
    middle = (found.min(axis=0) + found.max(axis=0)) / 2
    assert np.abs(prepared.geometry.center - middle).max() <= 20
    for number, modality in enumerate(MODALITIES):
        image = read_volume(world / "dataset" / "imagesTr" / f"case1_{number:04d}.nii.gz").array
        body = image[(prepared.array == 0) & (image > -0.9)]
        assert len(body) > 1000  # what has no label is part of the picture
        liver, spleen, kidney = (image[prepared.array == value].mean() for value in ORGANS)
        assert body.mean() < liver < spleen and body.mean() < kidney, modality


def test_volumes_lie_where_the_organs_are(world, tmp_path):
    mask = world / "cases" / "masks" / "case2.nii.gz"
    said = meddpm("generate", mask, "--model", "organs", "--out", tmp_path, "--steps", 1, "--device", "cpu")
    assert "brain" not in said
    made = sorted(tmp_path.rglob("*.nii.gz"))
    assert sum(any(modality in path.name for path in made) for modality in MODALITIES) == 2
    for path in made:
        geometry = read_volume(path).geometry
        assert geometry.orientation == "RAS" and geometry.size == (24, 24, 16)


def test_another_version_of_the_scheme_is_refused(world):
    changed = (world / "recipe.toml").read_text().replace('name = "Spleen"', 'name = "Pancreas"')
    (world / "changed.toml").write_text(changed)
    arguments = [
        "train",
        str(world / "dataset"),
        "--recipe",
        str(world / "changed.toml"),
        "--run",
        str(world / "other"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "another version of the scheme" in result.output


def test_prepare_asks_for_what_only_shipped_schemes_have(world, tmp_path):
    scheme = tmp_path / "mine.toml"
    scheme.write_text('[[labels]]\nvalue = 10\nname = "Liver"\n')
    assert read_scheme(scheme).name == "mine"
    common = ["prepare", str(world / "cases"), "--scheme", str(scheme), "--out", str(tmp_path / "out")]
    for more, message in (
        ([], "--modalities"),
        (["--modalities", "ct"], "--size"),
        (["--modalities", "ct", "--size", "24,24"], "--spacing"),
        (["--modalities", "CT", "--size", "8,8,8", "--spacing", "9"], "lower-case"),
        (["--modalities", "ct", "--size", "8,8,8", "--spacing", "9", "--fill-rest"], '"rest"'),
    ):
        result = CliRunner().invoke(app, [*common, *more])
        assert result.exit_code == 2 and message in result.output, (more, result.output)
    assert not (tmp_path / "out").exists()


def test_the_panel_offers_no_brain(application, world):
    application.moduleManager().load(MODULE)
    try:
        slicer.util.selectModule("MedDPM")
        panel = slicer.util.getModuleWidget("MedDPM")
        ui = panel.ui
        panel.models.choose("organs")
        assert "CT, MR-DIXON" in ui.modelSummary.text
        for widget in (
            ui.templateButton,
            ui.brainButton,
            ui.stampButton,
            ui.templateLabel,
            ui.brainLabel,
            ui.stampLabel,
        ):
            assert widget.isHidden()
        scheme = panel.models.card.scheme
        _, labels = trunk(3)
        node = painting.add_segmentation(Volume(labels, PLACE), scheme, "Organs")
        ui.segmentationSelector.setCurrentNode(node)
        slicer.app.processEvents()
        assert sorted(panel.mask.table.values()) == list(ORGANS)
        ui.stepsBox.value = 1
        generate(panel)
        assert "brain" not in ui.messageLabel.text.lower(), ui.messageLabel.text
        made = volumes.results()
        assert [volumes.record_of(one)["modality"] for one in made] == list(MODALITIES)
        bounds, mask_bounds = np.zeros(6), np.zeros(6)
        made[0].GetRASBounds(bounds)
        node.GetRASBounds(mask_bounds)
        middles = [b.reshape(3, 2).mean(axis=1) for b in (bounds, mask_bounds)]
        assert np.abs(middles[0] - middles[1]).max() < 40
        panel.models.choose("brain-brats")
        assert not any(widget.isHidden() for widget in (ui.templateButton, ui.brainButton, ui.stampButton))
    finally:
        application.moduleManager().unload("MedDPM")


def test_files_of_the_phantom_are_no_brain(world):
    """The phantom is one: what it is made of would be refused as a brain."""
    mask = Path(world / "cases" / "masks" / "case1.nii.gz")
    result = CliRunner().invoke(app, ["generate", str(mask), "--model", "brain-brats", "--out", str(world / "none")])
    assert result.exit_code == 2
