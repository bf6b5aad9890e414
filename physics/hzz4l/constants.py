"""Units and masses, each with its source."""

from __future__ import annotations

#: MeV in a GeV: files of the 2020 release hold energies in MeV.
MEV_PER_GEV = 1000.0
#: Inverse picobarns in an inverse femtobarn: luminosities are in fb⁻¹, cross-sections in pb.
IPB_PER_IFB = 1000

#: Mass of the Z boson: 91.1880 ± 0.0020 GeV (Particle Data Group, Phys. Rev. D 110 (2024) 030001).
Z_MASS_GEV = 91.188
#: Mass of the Higgs boson in the simulated signal samples (record 15005 of opendata.cern.ch).
SIMULATED_HIGGS_MASS_GEV = 125.0
