"""Which logged step each column of a picture over the training steps shows."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def columns(steps: Sequence[int], starts: Sequence[int]) -> tuple[Int[np.ndarray, "S+1"], Int[np.ndarray, " S"]]:
    """Compute where each column of a picture begins and ends, and which logged step it shows.

    A logged step stands for the steps since the one logged before, and never for steps of another phase.

    Args:
        steps: logged steps, ascending, from 1 on.
        starts: first steps of the phases, ascending.

    Returns:
        Edges, and for each column between them an index into `steps`, or -1 where its phase has no logged step.
    """
    edges = np.unique([0, *steps, *(start for start in starts if start < steps[-1])])
    phase_of_step, phase_of_column = (np.searchsorted(starts, ends) for ends in (steps, edges[1:]))
    shown = []
    for end, phase in zip(edges[1:], phase_of_column, strict=True):
        mine = np.flatnonzero(phase_of_step == phase)
        later = mine[np.asarray(steps)[mine] >= end]
        shown.append(later[0] if later.size else mine[-1] if mine.size else -1)
    return edges, np.asarray(shown)
