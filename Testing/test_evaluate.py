"""The evaluation of two folders: known answers on phantoms, bad cases, and the report in a browser."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COARSE, LEVELS, head_phantom, plain_scheme
from phantoms import PLACE, phantom, save

from MedDPMLib.errors import MedDPMError
from MedDPMLib.evaluation.cases import LoadedCase, find_cases, grid_of, load_case
from MedDPMLib.evaluation.features import HaarFeatures, MedicalNetFeatures
from MedDPMLib.evaluation.judge import Judge
from MedDPMLib.evaluation.report import write_report
from MedDPMLib.evaluation.run import Request, evaluate
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import SYNTHETIC, write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.segmentation.accuracy import Known, measure
from MedDPMLib.segmentation.segmenter import load_segmenter

BRATS = load_scheme("brats")
MODALITIES = ("t1", "t1ce")


def write_real(folder: Path, seeds, offset: int = 0) -> Path:
    for seed in seeds:
        images, _ = phantom(seed + offset)
        for modality in MODALITIES:
            save(folder / f"case{seed}" / f"case{seed}_{modality}.nii.gz", images[modality])
    return folder


def write_synthetic(folder: Path, seeds, offset: int = 0, samples: int = 1) -> Path:
    for seed in seeds:
        for sample in range(samples):
            images, _ = phantom(seed + offset + 1000 * sample)
            for modality in MODALITIES:
                path = folder / f"case{seed}_seed{sample}_{modality}.nii.gz"
                save(path, images[modality])
                record = {
                    "description": SYNTHETIC,
                    "modality": modality,
                    "mask": {"name": f"case{seed}"},
                    "scheme": "brats",
                }
                path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps(record))
    return folder


def write_masks(folder: Path, seeds) -> Path:
    for seed in seeds:
        save(folder / f"case{seed}.nii.gz", phantom(seed)[1])
    return folder


def request(tmp_path: Path, **more) -> Request:
    given = {"real": tmp_path / "real", "synthetic": tmp_path / "made", "masks": tmp_path / "masks"}
    return Request(**given | {"scheme": BRATS, "numbering": "med-ddpm", "vessels": False} | more)


def figure(evaluation, name: str, subject: str | None = None):
    found = [one for one in evaluation.figures if name in one.name and subject in (None, one.subject)]
    assert found, name
    return found[0]


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    """Synthetic volumes that are the real ones, which the model was trained on."""
    folder = tmp_path_factory.mktemp("same")
    write_real(folder / "real", range(4))
    write_synthetic(folder / "made", range(4))
    write_masks(folder / "masks", range(5))
    shutil.copy(folder / "masks" / "case0.nii.gz", folder / "masks" / "patient.nii.gz")
    write_real(folder / "training", [4])
    for path in (folder / "real" / "case0").iterdir():
        target = folder / "training" / "patient" / path.name.replace("case0", "patient")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return folder, evaluate(request(folder, training=folder / "training", vessels=True))


def test_a_set_against_itself_has_the_best_value_of_every_figure(same):
    _, found = same
    assert not found.skipped and len(found.real) == len(found.synthetic) == 4
    for modality in MODALITIES:
        assert figure(found, "3D-FID", modality).value == pytest.approx(0, abs=1e-6)
        assert "shrunk" in figure(found, "3D-FID", modality).name, "four cases are fewer than 31 features"
        assert figure(found, "MSE", modality).value == 0
        assert figure(found, "MS-SSIM, synthetic and real of one mask", modality).value == pytest.approx(1, abs=1e-4)
        for name in ("share of label means", "Wasserstein"):
            assert figure(found, name, modality).value == pytest.approx(figure(found, name, modality).floor)
        assert figure(found, "MMD squared, linear", modality).value <= 0, "unbiased: identical sets are too alike"
        for band in ("0.02 to 0.08", "0.35 to 0.5"):
            assert figure(found, band, modality).value == pytest.approx(1, rel=1e-6)
        different = figure(found, "MS-SSIM of synthetic volumes of different masks", modality)
        assert different.value == pytest.approx(different.floor, rel=1e-9)
    for name in ("mutual information", "agreement of edges"):
        assert figure(found, name).value == pytest.approx(figure(found, name).floor)
    for name in ("pieces of bright tubes", "loops of bright tubes"):
        assert figure(found, name).value == figure(found, name).floor and figure(found, name).exploratory
    assert figure(found, "clDice").value == 1
    assert figure(found, "MS-SSIM of synthetic volumes of one mask").value is None
    assert "no mask has several" in figure(found, "MS-SSIM of synthetic volumes of one mask").note


def test_a_copy_of_a_training_brain_is_found(same):
    _, found = same
    assert found.neighbors[0].case.group == "case0" and found.neighbors[0].training.name == "patient"
    assert found.neighbors[0].ratio == pytest.approx(0, abs=1e-6) and found.neighbors[0].suspicious
    assert "least 0.00 (case0_seed0)" in figure(found, "nearest training brain").note


def test_a_shift_of_intensities_and_grain_are_seen_where_they_are(tmp_path):
    write_real(tmp_path / "real", range(4))
    write_synthetic(tmp_path / "made", range(4))
    write_masks(tmp_path / "masks", range(4))
    random = np.random.default_rng(0)
    for seed in range(4):
        images, labels = phantom(seed)
        grainy = images["t1"] + random.normal(0, 40, labels.shape) * (labels > 0)
        swapped = np.where(labels == 3, images["t1ce"] - 120, images["t1ce"])
        for modality, image in (("t1", grainy), ("t1ce", swapped)):
            path = tmp_path / "made" / f"case{seed}_seed0_{modality}.nii.gz"
            save(path, np.where(labels > 0, np.maximum(image, 1), 0).astype(np.int16))
    found = evaluate(request(tmp_path))
    # Normalization gives grain room, so that all else loses contrast: grain shows in fine against coarse detail.
    assert figure(found, "0.35 to 0.5", "t1").value > 3 * figure(found, "0.02 to 0.08", "t1").value
    assert figure(found, "0.35 to 0.5", "t1").value > 1.1
    assert figure(found, "share of label means", "t1ce").value <= 0.75
    wasserstein = figure(found, "Wasserstein", "t1ce")
    assert wasserstein.value > 3 * wasserstein.floor
    assert figure(found, "mutual information").value < figure(found, "mutual information").floor


def test_bad_cases_are_reported_and_the_others_measured(tmp_path):
    write_real(tmp_path / "real", range(6))
    write_synthetic(tmp_path / "made", range(3), samples=2)
    write_masks(tmp_path / "masks", range(5))
    images, _ = phantom(1)
    save(tmp_path / "real/case1/case1_t1.nii.gz", np.where(images["t1"] > 0, np.nan, 0).astype(np.float32))
    save(tmp_path / "real/case2/case2_t1ce.nii.gz", np.full_like(images["t1"], 7))
    (tmp_path / "real/case3/case3_t1.nii.gz").write_bytes(b"damaged")
    (tmp_path / "real/case4/case4_t1ce.nii.gz").unlink()
    # case5 has no mask. One synthetic case has another shape: half the voxels along an axis, the same place.
    coarse = Geometry((PLACE.size[0], PLACE.size[1], PLACE.size[2] // 2), PLACE.ijk_to_ras @ np.diag([1, 1, 2, 1]))
    for modality in MODALITIES:
        save(tmp_path / f"made/case2_seed1_{modality}.nii.gz", images[modality][::2], coarse)
    found = evaluate(request(tmp_path))
    assert [one.name for one in found.real] == ["case0"]
    assert len(found.synthetic) == 6
    told = " | ".join(found.skipped)
    for words in (
        "case1_t1.nii.gz holds values that are not finite",
        "case2_t1ce.nii.gz: it is constant",
        "case3_t1.nii.gz",
        "case4 has no t1ce",
        "case5 has no mask",
    ):
        assert words in told, told
    # A single real volume has no distance of sets and no interval, and says so.
    assert figure(found, "3D-FID").value is None and "at least two" in figure(found, "3D-FID").note
    assert figure(found, "MMD").value is None
    assert figure(found, "MSE").ci is None and figure(found, "MSE").value == pytest.approx(0, abs=1)
    assert figure(found, "MS-SSIM of synthetic volumes of one mask").value is not None
    for path in write_report(tmp_path / "out", found):
        assert path.stat().st_size > 1000
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedDPMError, match="no volumes named CASE_MODALITY"):
        evaluate(request(tmp_path, synthetic=tmp_path / "empty"))
    with pytest.raises(MedDPMError, match="not a folder"):
        evaluate(request(tmp_path, real=tmp_path / "nothing"))


# A segmenter as judge ------------------------------------------------------------------------------------


def brain(shown: dict[int, int] | None = None) -> tuple[Volume, Volume]:
    """An image of the phantom that the small segmenter knows, and its labels; of the image, labels that are in
    ``shown`` look like others. Some of the rest is dark, as fluid is: by what is darkest an image is normalized."""
    scan, labels = head_phantom()
    darkest = (scan.array == 100) & (labels.array == 0)
    dark = (labels.array == 18) & (np.random.default_rng(0).random(labels.array.shape) < 0.03)
    image, known = scan.array.copy(), labels.array.copy()
    known[darkest] = 18
    image[darkest], image[dark] = 20, 100
    for value, other in (shown or {}).items():
        image[known == value] = 100 + 900 * LEVELS[other]
    return Volume(image, scan.geometry), Volume(known, scan.geometry)


def judged(judge: Judge, image: Volume, labels: Volume, modalities=("t1",), name="case") -> dict[str, float]:
    inside = labels.array > 0
    images = np.stack([np.where(inside, image.array / 500 - 1, -1).astype(np.float32)] * len(modalities))
    grid = Grid(image.geometry.size, (COARSE,) * 3, "LPS")
    return judge.dice(LoadedCase(name, name, images, inside, labels.array), modalities, grid)


def test_the_judge_finds_what_is_shown_and_misses_what_is_not(small_segmenter):
    segmenter, scheme = load_segmenter(small_segmenter), plain_scheme()
    judge = Judge(segmenter, scheme)
    names = {value: scheme.label_by_value(value).name for value in (1, 3, 8, 18)}
    image, labels = brain()
    right = judged(judge, image, labels)
    assert right.keys() == set(names.values()), "a tumor takes two modalities, and others the mask does not have"
    assert min(right[names[value]] for value in (1, 3, 8)) > 0.99 > right[names[18]] > 0.9
    # The same figures as by the command that measures segmenters.
    own = measure(segmenter, [Known("case", {"t1": image}, labels)], execution=choose_execution("cpu", "float32"))
    for value in (1, 3, 8):
        assert right[names[value]] == pytest.approx(own["t1"][names[value]][0], abs=0.01)
    missing, labels = brain({3: 1})
    found = judged(judge, missing, labels)
    assert found[names[3]] == 0 and found[names[8]] > 0.99
    sizes = {value: np.count_nonzero(labels.array == value) for value in (1, 3)}
    assert found[names[1]] == pytest.approx(2 * sizes[1] / (2 * sizes[1] + sizes[3]), abs=0.01)


def test_the_judge_speaks_the_labels_of_the_masks(small_segmenter):
    """Structures that a scheme does not tell apart are its rest; under a tumor they are not counted."""
    segmenter, scheme = load_segmenter(small_segmenter), plain_scheme("brats")
    image, labels = brain()
    plain = Volume(np.where(labels.array > 0, scheme.rest.value, 0).astype(np.uint8), labels.geometry)
    found = judged(Judge(segmenter, scheme), image, plain)
    assert found.keys() == {scheme.rest.name} and found[scheme.rest.name] > 0.97
    tumor = np.where(labels.array == 3, scheme.require_label("edema").value, plain.array)
    with_tumor = judged(Judge(segmenter, scheme), image, Volume(tumor, labels.geometry))
    assert with_tumor.keys() == {scheme.rest.name}, "one modality does not show a tumor"
    assert with_tumor[scheme.rest.name] > 0.97
    both = judged(Judge(segmenter, scheme), image, Volume(tumor, labels.geometry), ("t1", "t2"))
    assert both["Edema"] == 0, "this segmenter finds no tumor"
    with pytest.raises(MedDPMError, match="of case is empty"):
        judged(Judge(segmenter, scheme), Volume(np.zeros_like(image.array), image.geometry), plain)


def write_heads(folder: Path, shown: dict[str, dict[int, int]]) -> None:
    for name, instead in shown.items():
        image, _ = brain(instead)
        write_nifti(folder / f"{name}_t1.nii.gz", image)


def test_the_command_takes_a_segmenter_as_judge(meddpm, small_segmenter, tmp_path):
    """Patients on whom it was trained are left out: the real floor is that of the others."""
    write_heads(tmp_path / "real", {"one": {}, "known": {8: 1}})
    write_heads(tmp_path / "made", {"one": {3: 1}})
    _, labels = brain()
    for name in ("one", "known"):
        write_nifti(tmp_path / "masks" / f"{name}.nii.gz", labels)
    line = ["evaluate", "real", "made", "--no-vessels", "--out", "out", "--segmenter", small_segmenter]
    refused = meddpm(*line)
    assert refused.returncode == 2 and "--masks" in refused.stderr
    scheme = plain_scheme()
    (tmp_path / "scheme.json").write_text(json.dumps(scheme.to_dict()))
    result = meddpm(*line, "--masks", "masks", "--scheme", "scheme.json", "--labels", scheme.own_numbering)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert hashlib.sha256(small_segmenter.read_bytes()).hexdigest() in found["about"]["segmenter"]
    assert any("known" in note and "trained" in note for note in found["notes"])
    dice = {one["subject"]: one for one in found["figures"] if "Dice of a segmenter" in one["name"]}
    name = {value: scheme.label_by_value(value).name for value in (3, 8)}
    assert dice[name[3]]["value"] == 0 and dice[name[3]]["floor"] > 0.97
    assert dice[name[8]]["value"] > 0.97 and dice[name[8]]["floor"] > 0.97
    assert "Dice of a segmenter" in (tmp_path / "out/evaluation.html").read_text(encoding="utf-8")


def test_cases_are_found_in_each_layout_and_prepared_alike(tmp_path):
    write_real(tmp_path / "real", [0])
    write_synthetic(tmp_path / "made", [0])
    write_masks(tmp_path / "masks", [0])
    images, labels = phantom(0)
    raw = tmp_path / "Dataset501_Made"
    for index, modality in enumerate(MODALITIES):
        # As generated volumes are: another range of integers, and a faint background.
        save(raw / "imagesTr" / f"case0_seed4_{index:04d}.nii.gz", images[modality] * 2)
    save(raw / "labelsTr" / "case0_seed4.nii.gz", labels)
    names = {label.name: label.value for label in BRATS.labels}
    (raw / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "T1", "1": "T1Gd"}, "labels": {"background": 0} | names, "file_ending": ".nii.gz",
        "numTraining": 1}))  # fmt: skip
    (raw / "records").mkdir()
    (raw / "records" / "case0_seed4.json").write_text('{"mask": {"name": "case0"}}')
    found = [find_cases(tmp_path / name, tmp_path / "masks")[0] for name in ("real", "made")] + find_cases(raw)
    assert [one.group for one in found] == ["case0"] * 3
    assert all(list(one.images) == list(MODALITIES) for one in found)
    grid = grid_of(found[0])
    loaded = [load_case(one, MODALITIES, grid, BRATS, None if one.labels else "med-ddpm") for one in found]
    for one in loaded[1:]:
        np.testing.assert_array_equal(one.labels, loaded[0].labels)
        np.testing.assert_allclose(one.images, loaded[0].images, atol=2e-6)
    assert (loaded[0].images[:, ~loaded[0].inside] == -1).all()
    assert np.abs(loaded[0].images).max() == 1
    # Without masks the brain is what is bright.
    blind = load_case(found[0], MODALITIES, grid, None)
    assert blind.labels is None
    assert 2 * (blind.inside & loaded[0].inside).sum() / (blind.inside.sum() + loaded[0].inside.sum()) > 0.97


# Features ----------------------------------------------------------------------------------------------


def test_haar_features_are_moments_and_energies():
    random = np.random.default_rng(0)
    inside = np.zeros((32, 32, 32), bool)
    inside[4:28, 4:28, 4:28] = True
    noise = np.where(inside, random.normal(0.2, 0.3, inside.shape), -1).astype(np.float32)
    found = HaarFeatures().describe(noise, inside)
    assert found.shape == (31,)
    assert found[:3] == pytest.approx([noise[inside].mean(), noise[inside].std(), 0], abs=0.05)
    # White noise has its variance in every detail of an orthonormal transform; the means have an eighth of it.
    np.testing.assert_allclose(found[3:10], np.log10(0.09), atol=0.05)
    np.testing.assert_allclose(found[10:17], np.log10(0.09 / 8), atol=0.12)
    flat = HaarFeatures().describe(np.where(inside, 0.5, -1).astype(np.float32), inside)
    assert flat[:3] == pytest.approx([0.5, 0, 0], abs=1e-6) and np.allclose(flat[3:], -8), "the brain's edge is none"
    with pytest.raises(MedDPMError, match="empty"):
        HaarFeatures().describe(noise, np.zeros_like(inside))


def test_medicalnet_s_features_are_the_network_s_of_the_file(tmp_path):
    from monai.networks.nets.resnet import ResNet

    shape = {"block": "bottleneck", "layers": [1, 2, 1, 1], "block_inplanes": [4, 8, 12, 16]}
    torch.manual_seed(0)
    network = ResNet(**shape, spatial_dims=3, n_input_channels=1, num_classes=3, bias_downsample=False).eval()
    path = tmp_path / "resnet.pth"
    # As MedicalNet's files are: from a parallel network, with a head of their own.
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)
    inside = np.zeros((24, 24, 24), bool)
    inside[4:20, 4:20, 4:20] = True
    image = np.where(inside, np.random.default_rng(0).uniform(-1, 1, inside.shape), -1).astype(np.float32)
    features = MedicalNetFeatures(path)
    found = features.describe(image, inside)
    network.fc = torch.nn.Identity()
    scaled = np.where(inside, (image - image[inside].mean()) / image[inside].std(), 0).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(scaled)[None, None])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.shape == (64,) and "SHA-256" in features.about and "resnet.pth" in features.name
    for content in (b"nothing", None):
        wrong = tmp_path / "wrong.pth"
        wrong.write_bytes(content) if content else torch.save({"state_dict": {"a": torch.ones(1)}}, wrong)
        with pytest.raises(MedDPMError, match=r"wrong.pth does not hold the weights of a MedicalNet ResNet"):
            MedicalNetFeatures(wrong)
    with pytest.raises(MedDPMError, match="does not exist"):
        MedicalNetFeatures(tmp_path / "none.pth")


# The command and its report ----------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_both_files(meddpm, tmp_path):
    write_real(tmp_path / "real", range(2))
    write_synthetic(tmp_path / "made", range(2), offset=50)
    write_masks(tmp_path / "masks", range(2))
    result = meddpm(
        "evaluate", "real", "made", "--masks", "masks", "--labels", "med-ddpm", "--out", "out", "--no-vessels"
    )
    assert result.returncode == 0, result.stderr
    for words in (
        "Wasserstein",
        "synthetic (95 %)",
        "real against real",
        "few: distances of sets",
        "preprocessing: all cases",
        "features: MedDPM's Haar features",
        "not measured",
        "out/evaluation.html",
    ):
        assert words in result.stdout, words
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert found["about"]["label scheme"] == "brats" and found["real"] == ["case0", "case1"]
    for one in found["figures"]:
        assert one["n"] and one["range"] and one["better"]
    missing = meddpm("evaluate", "real", "made", "--out", "out", "--masks", "nowhere")
    assert missing.returncode == 2 and "nowhere is not a folder" in missing.stderr


def test_the_report_needs_no_network_and_has_no_error_in_a_browser(same, tmp_path):
    _, found = same
    hostile = replace(found, skipped=["<script>alert(1)</script> & co"])
    _, path = write_report(tmp_path, hostile)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text
    for link in re.findall(r"(?:src|href)=[\"']([^\"']*)", text) + re.findall(r"url\(([^)]*)\)", text):
        assert link.startswith(("data:", "#")), link
    assert text.count("<img") >= 8 and text.count("<svg") == 4
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to open the report in")
    for name, width in (("laptop", 1366), ("phone", 390)):
        shot = tmp_path / f"{name}.png"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},4000", f"--screenshot={shot}"]
        result = subprocess.run(
            [browser, *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=False
        )
        assert shot.is_file(), result.stderr
        assert "CONSOLE" not in result.stderr, result.stderr
