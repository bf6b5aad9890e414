"""What made a result: the software of each service, the replicas that took part, and the input files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.messages import FileIdentity, Software
from common.replica import software as this_software

#: What the services are that worked on a run, by their names; a service may be there more than once.
ServiceSoftware = Sequence[tuple[str, Software]]


def provenance(
    software: ServiceSoftware,
    replicas: Mapping[str, Sequence[str]],
    files: Mapping[str, FileIdentity],
    analysis_sha256: str | None,
) -> dict[str, Any]:
    """Return the ``provenance`` of result.json; ``files`` are the input files of the samples.

    ``version`` and ``commit`` are those of the analysis service. A package of which the services have different
    versions has these by service, and so has the platform; a service that has several gives them all.
    """
    own = this_software()
    packages = sorted({name for _, one in software for name in one.packages})
    return {
        "version": own.version,
        "commit": own.commit,
        "analysis_sha256": analysis_sha256,
        "packages": {name: _merged(_versions(software, name)) for name in packages},
        "platform": _merged(_by_service((service, one.platform) for service, one in software)),
        "replicas": {service: list(names) for service, names in replicas.items()},
        "inputs": {
            sample: {"location": file.location, "bytes": file.bytes, "adler32": file.adler32}
            for sample, file in files.items()
        },
    }


def version_warnings(software: ServiceSoftware) -> list[str]:
    """Return a warning that names what differs between the services: the version of this project, or of a package."""
    found = {
        "version": _by_service((service, one.version) for service, one in software),
        "commit": _by_service((service, one.commit) for service, one in software),
        **{name: _versions(software, name) for _, one in software for name in one.packages},
    }
    different = [
        f"{what} {', '.join(f'{value} ({service})' for service, value in by_service.items())}"
        for what, by_service in found.items()
        if len(set(by_service.values())) > 1 or any("," in value for value in by_service.values())
    ]
    if not different:
        return []
    return [f"the services are of different versions: {'; '.join(different)}; use images of one version"]


def _versions(software: ServiceSoftware, package: str) -> dict[str, str]:
    return _by_service((service, one.packages[package]) for service, one in software if package in one.packages)


def _by_service(values: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the values of each service; different ones of a service are joined by commas."""
    found: dict[str, dict[str, None]] = {}
    for service, value in values:
        found.setdefault(service, {})[value] = None
    return {service: ", ".join(of) for service, of in found.items()}


def _merged(by_service: Mapping[str, str]) -> str | dict[str, str]:
    """Return the value if all services have the same, and otherwise that of each service."""
    values = set(by_service.values())
    return values.pop() if len(values) == 1 else dict(by_service)
