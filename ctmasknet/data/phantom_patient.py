"""A synthetic chest-CT patient as a list of slices, decided by seed, patient number and kind."""

from __future__ import annotations

import numpy as np

from ctmasknet.data.phantom_render import DEFAULT, PhantomConfig, PhantomPatient, PhantomSlice
from ctmasknet.errors import CTMaskNetError

Array = np.ndarray


def phantom_patient(
    kind: str,
    seed: int,
    side_px: int,
    slices: int,
    *,
    patient: int = 0,
    infected_only: bool = True,
    config: PhantomConfig = DEFAULT,
) -> list[PhantomSlice]:
    """Slices of one synthetic patient, top to bottom.

    Seed, patient number and kind decide the outcome, whatever else is made before or beside it.

    Args:
        kind: ``normal``, ``pneumonia`` or ``covid``.
        side_px: height and width.
        slices: how many.
        infected_only: keep slices with visible lesions only, as COVIDx-CT does for pneumonia and
            COVID; otherwise about 30 % are drawn from the whole lung and may show none. Normal
            patients ignore it.

    Raises:
        CTMaskNetError: unknown kind, or more slices than a patient has.
    """
    if slices < 1:
        raise CTMaskNetError(f"{slices} slices a patient: ask for at least 1")
    made = PhantomPatient(kind, seed, patient, side_px, config)
    for attempt in range(50):
        made.plan_lesions(attempt)
        chosen = _choose(
            made, slices, infected_only, np.random.default_rng([*made._key, 3, attempt])
        )
        if len(chosen) == slices:
            return [made.slice(number) for number in chosen]
    raise CTMaskNetError(
        f"{slices} slices a patient: more than a {kind} patient of this size shows; ask for fewer"
    )


def _choose(
    made: PhantomPatient, slices: int, infected_only: bool, rng: np.random.Generator
) -> list[int]:
    """Up to ``slices`` slice numbers, ascending, spread over the lung or over its infected part."""
    numbers = np.array(made.numbers())
    if made.kind == "normal":
        return _spread(numbers, slices, rng)
    anywhere = 0 if infected_only else int(rng.binomial(slices, 0.3))
    strength = [max(le.strength_at(made.height(n)) for le in made.lesions) for n in numbers]
    infected = numbers[np.array(strength) > 0.3]
    enough = made.config.min_lesion_share * made.side_px**2
    chosen: list[int] = []
    first = _spread(infected, min(slices - anywhere, len(infected)), rng)
    others = [n for n in rng.permutation(infected).tolist() if n not in first]
    for number in [*first, *others]:
        if len(chosen) == slices - anywhere:
            break
        if (made.labels(number) > 1).sum() >= enough:
            chosen.append(number)
    if len(chosen) < slices - anywhere:
        return []
    rest = np.array([n for n in numbers if n not in chosen])
    return sorted(chosen + _spread(rest, min(anywhere, len(rest)), rng))


def _spread(numbers: Array, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` distinct entries, one at random from each of equal stretches."""
    if count < 1 or count > len(numbers):
        return []
    return [int(rng.choice(part)) for part in np.array_split(numbers, count)]
