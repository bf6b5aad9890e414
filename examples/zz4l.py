"""ZZ→4ℓ on the Z mass shell: the production of two Z bosons, each of which decays to two electrons or two muons.

An event has four leptons that pass the pT cuts, of total charge 0, in two Z candidates whose masses lie
between 66 and 116 GeV. The mass of the four leptons and the leading Z's pT are filled; the fit measures how
many ZZ events there are, relative to the simulation. The files and weights are those of H→ZZ*→4ℓ in 2020.

    ./local-run.sh --analysis examples/zz4l.py --release demo
"""

from dataclasses import replace

from common.analyses import Axis, Category, Model, Normalisation, Observable, Step
from physics import ANALYSES as HZZ4L

Z_LOW_GEV, Z_HIGH_GEV = 66.0, 116.0


def both_on_shell(leptons, run):
    """Which events have two Z candidates on the mass shell; without a pair, the masses are NaN, and NaN fails."""
    z1, z2 = leptons.z_masses
    return (z1 > Z_LOW_GEV) & (z1 < Z_HIGH_GEV) & (z2 > Z_LOW_GEV) & (z2 < Z_HIGH_GEV)


MASS = Observable(
    "m4l",
    lambda leptons: leptons.mass,
    Axis(14, 180.0, 600.0),
    label=r"$m_{4\ell}$",
    caption="Four-lepton mass",
    per_channel=True,
    dtype="float64",
)
Z_PT = Observable(
    "z_pt",
    lambda leptons: leptons.leading_z_pt,
    Axis(15, 0.0, 300.0),
    label=r"Leading $Z$'s $p_{\mathrm{T}}$",
    caption="Transverse momentum of the leading Z candidate",
)


def on_shell(higgs):
    """The analysis of ZZ with the files of a release of the analysis of the Higgs boson."""
    charge, flavour = higgs.processor_steps
    return replace(
        higgs,
        process=r"ZZ\to 4\ell",
        categories=(
            Category("data", "Data", "black", "data"),
            Category("z_ttbar", r"$Z,\,t\bar{t}$", "#6b59d3", "background"),
            Category("higgs", r"$H\to ZZ^{*}$", "#3fc1e8", "background"),
            Category("zz", "$ZZ$", "#e8483a", "signal"),
        ),
        samples=tuple(replace(one, category="higgs") if one.category == "signal" else one for one in higgs.samples),
        processor_steps=(charge, flavour, Step("on_shell", both_on_shell)),
        channels=tuple(replace(one, label=one.label.replace(r"H\to ZZ^{*}", "ZZ")) for one in higgs.channels),
        observables=(MASS, Z_PT),
        model=Model(
            observable="m4l",
            window=(180.0, 600.0),
            normalisations=(Normalisation("luminosity", "Luminosity", 0.017),),
            is_search=False,
        ),
    )


ANALYSES = (on_shell(HZZ4L["2020e-13tev"]), on_shell(HZZ4L["demo"]))
