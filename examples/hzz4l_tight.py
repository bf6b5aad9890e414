"""H→ZZ*→4ℓ with three changes: a tighter cut, a longer axis of the four-lepton mass, and one more observable."""

from dataclasses import replace

from common.analyses import Axis, Observable, Step
from physics import ANALYSES as HZZ4L

TIGHT = Step("z1_mass", lambda leptons, run: abs(leptons.z_masses[0] - 91.2) < 20.0)
TRAILING_PT = Observable(
    "last_pt", lambda leptons: leptons.pt_gev(3), Axis(20, 0.0, 60.0), label="Fourth lepton $p_T$", caption="Fourth pT"
)


def tight(shipped):
    """The shipped analysis of a release with the three changes."""
    mass, *others = shipped.observables
    return replace(
        shipped,
        processor_steps=(*shipped.processor_steps, TIGHT),
        observables=(replace(mass, axis=Axis(44, 80.0, 300.0)), *others, TRAILING_PT),
    )


ANALYSES = tuple(tight(shipped) for shipped in HZZ4L.values())
