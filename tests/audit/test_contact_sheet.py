"""Likeness and the contact sheet."""

import numpy as np
import pytest
import torch

from fedhpc.audit.contact_sheet import (
    CAPTION,
    GAP,
    HEADER,
    HIGHEST_PSNR_DB,
    LABEL_WIDTH,
    TILE,
    Strip,
    contact_sheet,
    likeness,
)


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_an_image_is_like_itself_at_any_scale() -> None:
    original = images(1)
    for guess in (original[0], 5 * original[0] - 3, -original[0]):
        (alike,) = likeness(guess, original)
        assert alike.ssim == pytest.approx(1.0, abs=1e-4)
        assert 60 < alike.psnr_db <= HIGHEST_PSNR_DB


def test_likeness_falls_with_noise_and_each_original_is_compared_by_itself() -> None:
    original = images(3)
    noise = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(1))
    values = [likeness(original[0] + level * noise, original[:1])[0].ssim for level in (0, 0.05, 0.2, 1)]
    assert values == sorted(values, reverse=True)
    alike = likeness(original[1], original)
    assert int(np.argmax([one.ssim for one in alike])) == 1
    assert max(alike[0].ssim, alike[2].ssim) < 0.2


@pytest.mark.parametrize("shape", [(1, 8, 10), (3, 32, 20)])
def test_small_and_coloured_images_are_compared_too(shape: tuple[int, int, int]) -> None:
    original = torch.rand(1, *shape)
    assert likeness(original[0], original)[0].ssim == pytest.approx(1.0, abs=1e-4)
    assert likeness(torch.zeros(shape), original)[0].ssim < 0.5


@pytest.mark.parametrize(("columns", "strips"), [(1, 1), (4, 3)])
def test_sheet_has_room_for_all(columns: int, strips: int) -> None:
    cells = [(np.full((4, 4), 7.0), ["SSIM 1.00", "PSNR 99.0 dB"])] * columns
    sheet = contact_sheet(
        ["x"] * columns, [Strip("attack", "a note that is long enough to be wrapped", cells)] * strips
    )
    assert sheet.size == (LABEL_WIDTH + columns * (TILE + GAP), HEADER + strips * (TILE + CAPTION + GAP))
    assert np.asarray(sheet).std() > 0
