"""The statistical model of H→ZZ*→4ℓ: the m4l histogram, its uncertainties, and the measurement of the mass."""

from __future__ import annotations

from common.analyses import Axis, Model, Normalisation, Peak, ScaleVariation
from physics.hzz4l.constants import SIMULATED_HIGGS_MASS_GEV

#: The window around the Higgs boson's mass, in GeV: three bins around 125.
WINDOW_GEV = (115.0, 130.0)


def model(luminosity: float) -> Model:
    """Return the model for a release whose luminosity has this relative uncertainty.

    The uncertainties of the lepton efficiencies, of the cross-section of ZZ* and of the m4l scale
    are conservative round numbers for an educational analysis.
    """
    return Model(
        observable="m4l",
        window=WINDOW_GEV,
        normalisations=(
            Normalisation("luminosity", "Luminosity", luminosity),
            Normalisation("scale_factors", "Lepton scale factors", 0.10),
            Normalisation("zz_normalisation", r"$ZZ^{*}$ normalisation", 0.10, categories=("zz",)),
        ),
        scale=ScaleVariation("m4l_scale", r"$m_{4\ell}$ scale", 0.01),
        # Bins of a quarter of the m4l resolution. The fitted range is that of ATLAS's measurements, between the
        # peaks of Z and ZZ.
        peak=Peak(
            name="mass",
            symbol="m_H",
            caption="Higgs boson's mass",
            axis=Axis(150, 95.0, 170.0),
            window=(105.0, 160.0),
            simulated=SIMULATED_HIGGS_MASS_GEV,
            scanned=(115.0, 135.0),
        ),
    )
