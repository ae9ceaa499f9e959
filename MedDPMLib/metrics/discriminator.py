"""Can a small network tell synthetic from real? The area under its ROC curve on patients that it never saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from MedDPMLib.errors import MedDPMError

#: Voxels of a patch along each axis, and how many are looked at in each volume.
PATCH, PATCHES = 32, 24

#: At least this share of a patch is brain.
_LEAST_BRAIN = 0.5

_WIDTHS = (16, 32, 64, 64)
_BATCH = 16


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive case has the higher score, ties counting half (Mann and Whitney)."""
    from scipy.stats import rankdata

    positive = np.asarray(positive, bool)
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        raise MedDPMError("an area under the curve needs cases of both kinds")
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * m))


def tell_apart(
    training: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    unseen: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    *,
    iterations: int = 300,
    seed: int = 0,
) -> tuple[float, float]:
    """Trains a 3-D CNN to tell (real, synthetic) of ``training`` apart: its AUC by patch and by volume on ``unseen``.

    Volumes are (C, D, H, W) in [-1, 1], the background -1. Patches of :data:`PATCH` voxels, at least half brain, are
    drawn at random and mirrored; a volume's score is the mean of those of its :data:`PATCHES` patches. 0.5 means that
    it cannot tell, 1 that it always can. The patients of ``unseen`` must be others than those of ``training``.
    """
    import torch
    from torch import nn

    generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    channels = training[0][0].shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, width = [], channels
        for wider in _WIDTHS:
            layers += [nn.Conv3d(width, wider, 3, stride=2 if layers else 1, padding=1), nn.GroupNorm(8, wider)]
            layers += [nn.SiLU()]
            width = wider
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(width, 1))
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=iterations)
        for _ in range(iterations):
            patches, answers = [], []
            for index in range(_BATCH):
                kind = index % 2
                volume = training[kind][random.integers(len(training[kind]))]
                patch = _patch(volume, random)
                patches.append(patch[..., ::-1] if random.random() < 0.5 else patch)
                answers.append(float(kind))
            batch = torch.from_numpy(np.stack(patches))
            batch = batch + 0.01 * torch.randn(batch.shape, generator=generator)
            loss = nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], torch.tensor(answers))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        scores, kinds = [], []
        with torch.no_grad():
            for kind, volumes in enumerate(unseen):
                for volume in volumes:
                    batch = np.stack([_patch(volume, random) for _ in range(PATCHES)])
                    scores.append(network(torch.from_numpy(batch))[:, 0].numpy())
                    kinds.append(kind)
    by_patch = area_under_curve(np.concatenate(scores), np.repeat(kinds, PATCHES))
    return by_patch, area_under_curve(np.array([score.mean() for score in scores]), np.array(kinds))


def _patch(volume: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random patch of ``volume`` that is at least half brain, (C, PATCH, PATCH, PATCH) float32."""
    best, most = None, -1.0
    for _ in range(40):
        start = [random.integers(side - PATCH + 1) for side in volume.shape[1:]]
        patch = volume[(slice(None), *(slice(s, s + PATCH) for s in start))]
        share = float((patch > -1).any(axis=0).mean())
        if share > most:
            best, most = patch, share
        if share >= _LEAST_BRAIN:
            break
    return np.ascontiguousarray(best, np.float32)
