"""The settings of the pipeline: frozen, typed objects, and the function that reads them.

A value comes from the command-line flag, else from the environment variable
of the same name, else from the default. Each default is defined once: as the
default of a field, or in ``VARIABLES``. No other module reads the environment.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
import ssl
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from common.errors import SettingsError
from common.names import MAX_NAME, NAME_IS, is_name

T = TypeVar("T")

MAX_DEMO_EVENTS = 1_000_000_000
#: In fb⁻¹; the LHC will have delivered 3,000 to 4,000 fb⁻¹ at its end.
MIN_LUMI_IFB, MAX_LUMI_IFB = 0.001, 10_000.0
#: A message has at most 92 bytes an entry, so that a chunk of this many entries fits into 8 MiB.
MAX_CHUNK_ENTRIES = 80_000
#: The most ended runs that may be kept, unless all are.
MAX_RESULTS_KEEP = 1_000_000
AMQP_PORT, AMQPS_PORT = 5672, 5671
#: The length of a short string of AMQP 0-9-1.
MAX_VHOST_BYTES = 255
LOCAL_HOST = "127.0.0.1"
#: The length of a random key of 64 bits in hexadecimal.
MIN_MESSAGE_KEY_LENGTH = 16


@dataclass(frozen=True)
class RunSettings:
    """The settings that decide the numbers of a run, and whether its plots are drawn.

    ``data`` is a directory or the address of one, None for the release's own
    addresses; ``lumi_ifb`` is in fb⁻¹ and ``pt_cuts_gev`` are in GeV, None for the
    release's own; ``demo_events`` counts the simulated events of a toy release.
    Raises SettingsError where a value cannot be used. ``Analyses.resolve`` checks
    that the release and the samples exist, and fills in what is not given.

    ``analysis`` is the name of an analysis, and ``analysis_sha256`` the checksum of its code; no code is
    taken from a message.
    """

    release: str = "2020e-13tev"
    data: str | None = None
    samples: tuple[str, ...] = ()
    lumi_ifb: float | None = None
    fraction: float = 1.0
    pt_cuts_gev: tuple[float, ...] | None = None
    demo_events: int = 1_000_000
    chunk_entries: int = 50_000
    plots: bool = True
    analysis: str = "hzz4l"
    analysis_sha256: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _checked_location(self.data))
        if not is_name(self.analysis):
            raise SettingsError(f"ANALYSIS={self.analysis[:MAX_NAME]!r}: not the name of an analysis; {NAME_IS}")
        if not re.fullmatch(r"([0-9a-f]{64})?", self.analysis_sha256):
            raise SettingsError(f"analysis_sha256={self.analysis_sha256[:64]!r}: not a SHA-256 in hexadecimal")
        if self.lumi_ifb is not None and not MIN_LUMI_IFB <= self.lumi_ifb <= MAX_LUMI_IFB:
            raise SettingsError(
                f"LUMI={self.lumi_ifb:g}: a luminosity lies from {MIN_LUMI_IFB:g} to {MAX_LUMI_IFB:g} fb⁻¹; "
                "write for example LUMI=10"
            )
        if not 0 < self.fraction <= 1:
            raise SettingsError(
                f"FRACTION={self.fraction}: the fraction of each file's events lies above 0 and up to 1; "
                "write for example FRACTION=0.5"
            )
        for cut in self.pt_cuts_gev or ():
            if not (math.isfinite(cut) and cut >= 0):
                raise SettingsError(
                    f"PT_CUTS={_comma(self.pt_cuts_gev or ())!r}: {cut:g} is not a pT in GeV; "
                    "write for example PT_CUTS=20,15,10"
                )
        if not 1 <= self.chunk_entries <= MAX_CHUNK_ENTRIES:
            raise SettingsError(
                f"CHUNK_ENTRIES={self.chunk_entries}: choose from 1 to {MAX_CHUNK_ENTRIES}, "
                "so that a chunk fits into one message"
            )

    @property
    def luminosity_ifb(self) -> float:
        """The luminosity in fb⁻¹ that simulation is scaled to; raises SettingsError before it is resolved."""
        if self.lumi_ifb is None:
            raise SettingsError("LUMI is not resolved")
        return self.lumi_ifb

    @property
    def cuts_gev(self) -> tuple[float, ...]:
        """The pT cuts in GeV; raises SettingsError before they are resolved."""
        if self.pt_cuts_gev is None:
            raise SettingsError("PT_CUTS is not resolved")
        return self.pt_cuts_gev

    @cached_property
    def digest(self) -> str:
        """A text that is the same for the same settings only; two requests for one run must have the same."""
        return hashlib.sha256(json.dumps(asdict(self.without_credentials()), sort_keys=True).encode()).hexdigest()[:16]

    def entries_of(self, entries_in_file: int) -> int:
        """How many of a file's entries the run reads: ⌊fraction·N⌋, exact for decimal fractions."""
        return int(Fraction(str(self.fraction)) * entries_in_file)

    def without_credentials(self) -> RunSettings:
        """Return these settings with a data location that shows no user, password or token.

        Only the data-loader needs them: what other services keep and show are these settings.
        """
        return self if self.data is None else replace(self, data=without_credentials(self.data))

    def to_result(self, *, toy: bool) -> dict[str, Any]:
        """The ``settings`` of result.json; the number of demo events belongs to a toy release alone."""
        return {
            "lumi": self.luminosity_ifb,
            "fraction": self.fraction,
            "pt_cuts": list(self.cuts_gev),
            "data": self.without_credentials().data,
            "samples": list(self.samples),
            "chunk_entries": self.chunk_entries,
            "plots": self.plots,
            **({"demo_events": self.demo_events} if toy else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], defaults: RunSettings | None = None) -> RunSettings:
        """Settings from JSON values under the names of the fields; what is left out is taken from ``defaults``.

        Raises SettingsError for an unknown name, a wrong type or an unusable value.
        """
        known = asdict(defaults or cls())
        if "release" in values or "analysis" in values:
            known["samples"] = ()
        if "analysis" in values:
            known["analysis_sha256"] = ""
        for name in values:
            if name not in known:
                raise SettingsError(f"a run has no setting {reprlib.repr(name)}; it has {', '.join(known)}")
        try:
            return msgspec.convert({**known, **values}, cls)
        except msgspec.ValidationError as error:
            raise SettingsError(f"run settings: {error}") from None


@dataclass(frozen=True)
class BrokerSettings:
    """The address of RabbitMQ and the credentials. No text shows the password or the key.

    With ``tls`` the certificate of the broker must name its host and be signed by
    ``tls_ca`` or, where that is None, by an authority that this machine trusts.
    Messages are signed with ``message_key`` unless it is empty.
    """

    host: str = "rabbitmq"
    port: int = AMQP_PORT
    user: str = "atlas"
    password: str = field(default="atlas", repr=False)
    vhost: str = "/"
    tls: bool = False
    tls_ca: Path | None = None
    message_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if re.search(r"[@/?#\s\0]", self.host) or not _is_encodable(self.host, "idna"):
            raise SettingsError(  # without the value: it may be an address with a password
                "RABBITMQ_HOST: not the name of a host; write for example RABBITMQ_HOST=localhost, and give the user "
                "and the password as RABBITMQ_USER and RABBITMQ_PASS"
            )
        texts = {
            "RABBITMQ_USER": self.user,
            "RABBITMQ_PASS": self.password,
            "RABBITMQ_VHOST": self.vhost,
            "MESSAGE_KEY": self.message_key,
        }
        for name, text in texts.items():
            if "\0" in text or not _is_encodable(text, "utf-8"):
                raise SettingsError(f"{name}: not UTF-8 text without null bytes, as the broker needs; correct it")
        if (length := len(self.vhost.encode())) > MAX_VHOST_BYTES:
            raise SettingsError(
                f"RABBITMQ_VHOST: {length} bytes; the name of a virtual host has at most {MAX_VHOST_BYTES}"
            )

    def __str__(self) -> str:
        scheme = "amqps" if self.tls else "amqp"
        vhost = "" if self.vhost == "/" else f"/{self.vhost}"
        return f"{scheme}://{self.user}@{in_address(self.host)}:{self.port}{vhost}"

    def with_url(self, url: str) -> BrokerSettings:
        """Return these settings with the parts that an amqp:// or amqps:// address gives.

        Raises SettingsError for an unusable address; the error does not show it if it may hold a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            user, password, vhost = (
                unquote(text or "", errors="strict") for text in (parts.username, parts.password, parts.path[1:])
            )
            usable = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and port != 0
        except ValueError:
            usable = False
        # An '@' after the host, a query or a fragment: the password has a '/', '?' or '#' that is not encoded.
        if not usable or "@" in parts.path or parts.query or parts.fragment:
            shown = url if re.fullmatch(r"(\w+://)?[\w.-]*/?", url) else "…"
            raise SettingsError(
                f"--broker {shown}: write an address like amqp://user:password@host:5672 or amqps://host/vhost, the "
                "port from 1 to 65535; in a user, password or virtual host, write %2F for '/', %3F for '?', %23 for "
                "'#' and %40 for '@'"
            )
        tls = parts.scheme == "amqps" or self.tls_ca is not None
        try:
            return replace(
                self,
                tls=tls,
                host=parts.hostname or self.host,
                port=port or (AMQPS_PORT if tls else AMQP_PORT),
                user=user or self.user,
                password=password or self.password,
                vhost=vhost or self.vhost,
            )
        except SettingsError as error:
            raise SettingsError(f"--broker: {error}") from None


@dataclass(frozen=True)
class Settings:
    """All settings of one command or one service."""

    run: RunSettings
    analyses: Path
    broker: BrokerSettings
    output: Path
    cache: Path
    database: Path
    metrics_host: str
    metrics_port: int
    page_host: str
    page_port: int
    results_keep: int
    log_level: str


@dataclass(frozen=True)
class Variable:
    """One environment variable, and the flag of analysis.py that overrides it.

    A flag without ``metavar`` takes no value and sets the variable to 0.
    """

    name: str
    default: str
    what: str
    flag: str | None = None
    metavar: str | None = None


def _comma(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


VARIABLES = (
    Variable("ANALYSIS", RunSettings.analysis, "analysis: its name, or a Python file", "--analysis", "NAME|FILE"),
    Variable("ANALYSES_DIR", "analyses", "directory with the files of own analyses, NAME.py"),
    Variable("RELEASE", RunSettings.release, "release of ATLAS Open Data", "--release", "NAME"),
    Variable("DATA", "", "directory with the release's files, or the address of one", "--data", "DIR|URL"),
    Variable("SAMPLES", "", "samples to analyse; all of the release by default", "--samples", "A,B,.."),
    Variable("LUMI", "", "integrated luminosity in fb⁻¹; that of the data in the run by default", "--lumi", "IFB"),
    Variable(
        "FRACTION", str(RunSettings.fraction), "fraction of each file's events, from the first on", "--fraction", "F"
    ),
    Variable("PT_CUTS", "", "pT cuts in GeV; '': no cuts; the release's own by default", "--pt-cuts", "A,B,.."),
    Variable("DEMO_EVENTS", str(RunSettings.demo_events), "simulated events of the demo release", "--demo-events", "N"),
    Variable("CHUNK_ENTRIES", str(RunSettings.chunk_entries), "entries of one chunk", "--chunk-entries", "N"),
    Variable("PLOTS", "1", "0: draw no plots; the numbers and histograms are written", "--no-plots"),
    Variable("OUTPUT", "results", "directory for the results", "--output", "DIR"),
    Variable("RABBITMQ_HOST", BrokerSettings.host, "broker: host"),
    Variable("RABBITMQ_PORT", str(BrokerSettings.port), f"broker: port; {AMQPS_PORT} with TLS"),
    Variable("RABBITMQ_USER", BrokerSettings.user, "broker: user"),
    Variable("RABBITMQ_PASS", BrokerSettings.password, "broker: password"),
    Variable("RABBITMQ_VHOST", BrokerSettings.vhost, "broker: virtual host"),
    Variable("RABBITMQ_TLS_CA", "", "broker: file with the certificate authority to trust; enables TLS"),
    Variable("MESSAGE_KEY", "", "secret that signs messages, the same for every service; '': unsigned"),
    Variable("CACHE", "~/.cache/atlas-open-data", "fetched files and demo releases"),
    Variable("DATABASE", "analysis.sqlite", "database of the analysis service"),
    Variable("METRICS_PORT", "0", "port for /healthz, /readyz and /metrics; 0: none"),
    Variable("METRICS_HOST", LOCAL_HOST, "address that METRICS_PORT listens on; '::': every one; the images set it"),
    Variable("PAGE_PORT", "0", "port of the visualisation's web page; 0: none"),
    Variable("PAGE_HOST", LOCAL_HOST, "address that PAGE_PORT listens on; '::': every one; the images set it"),
    Variable("RESULTS_KEEP", "0", "ended runs that are kept, the latest; 0: all folders, and 1000 runs in DATABASE"),
    Variable("LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR"),
)


def read(environment: Mapping[str, str], flags: Mapping[str, str | None] | None = None) -> Settings:
    """Read all settings; ``flags``, by the name of the variable, override the environment.

    Raises SettingsError naming the variable, its value and what to write instead.
    """
    flags = flags or {}

    def given(name: str) -> str | None:
        flag = flags.get(name)
        return environment.get(name) if flag is None else flag

    def value(name: str, default: str) -> str:
        return given(name) or default  # an empty variable counts as unset, except PT_CUTS, where it means no cuts

    text = {variable.name: value(variable.name, variable.default) for variable in VARIABLES}
    if text["LOG_LEVEL"].upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsError(f"LOG_LEVEL={text['LOG_LEVEL']!r}: choose DEBUG, INFO, WARNING or ERROR")
    if text["PLOTS"] not in ("0", "1"):
        raise SettingsError(f"PLOTS={text['PLOTS']!r}: write PLOTS=1 for plots or PLOTS=0 for none")
    tls_ca = _certificate_authority(text["RABBITMQ_TLS_CA"])
    default_port = AMQP_PORT if tls_ca is None else AMQPS_PORT
    port = _convert("RABBITMQ_PORT", value("RABBITMQ_PORT", str(default_port)), int, "a port", "5672")
    if not 0 < port < 65536:
        raise SettingsError(f"RABBITMQ_PORT={port}: a port lies from 1 to 65535; RabbitMQ's own is 5672")
    if 0 < len(text["MESSAGE_KEY"]) < MIN_MESSAGE_KEY_LENGTH:
        raise SettingsError(
            f"MESSAGE_KEY: {len(text['MESSAGE_KEY'])} characters; a key has at least {MIN_MESSAGE_KEY_LENGTH}, "
            "for example what 'openssl rand -hex 32' prints"
        )
    analyses, analysis = _analysis(text["ANALYSIS"], text["ANALYSES_DIR"])
    results_keep = _convert("RESULTS_KEEP", text["RESULTS_KEEP"], int, "a number of runs", "100")
    if not 0 <= results_keep <= MAX_RESULTS_KEEP:
        raise SettingsError(
            f"RESULTS_KEEP={results_keep}: keep a number of runs from 1 to {MAX_RESULTS_KEEP:,}, or 0 for all"
        )
    return Settings(
        run=RunSettings(
            analysis=analysis,
            release=text["RELEASE"],
            data=_location(text["DATA"]),
            samples=_split(text["SAMPLES"]),
            lumi_ifb=_convert("LUMI", text["LUMI"], float, "a number of fb⁻¹", "10") if text["LUMI"] else None,
            fraction=_convert("FRACTION", text["FRACTION"], float, "a number", "0.5"),
            pt_cuts_gev=_cuts(cuts) if (cuts := given("PT_CUTS")) is not None else None,
            demo_events=_convert("DEMO_EVENTS", text["DEMO_EVENTS"], int, "a number of events", "200000"),
            chunk_entries=_convert("CHUNK_ENTRIES", text["CHUNK_ENTRIES"], int, "a number of entries", "50000"),
            plots=text["PLOTS"] == "1",
        ),
        analyses=analyses,
        broker=BrokerSettings(
            host=text["RABBITMQ_HOST"],
            port=port,
            user=text["RABBITMQ_USER"],
            password=text["RABBITMQ_PASS"],
            vhost=text["RABBITMQ_VHOST"],
            tls=tls_ca is not None,
            tls_ca=tls_ca,
            message_key=text["MESSAGE_KEY"],
        ),
        output=_path("OUTPUT", text["OUTPUT"]),
        cache=_path_in_messages("CACHE", text["CACHE"]),
        database=_path("DATABASE", text["DATABASE"]),
        metrics_host=text["METRICS_HOST"],
        metrics_port=_port_or_none("METRICS_PORT", text["METRICS_PORT"], "9100"),
        page_host=text["PAGE_HOST"],
        page_port=_port_or_none("PAGE_PORT", text["PAGE_PORT"], "8080"),
        results_keep=results_keep,
        log_level=text["LOG_LEVEL"].upper(),
    )


def as_typed(message: str, flags: Mapping[str, str | None]) -> str:
    """Return the message of an error with the flags that were typed in place of the variables that they override."""
    for variable in VARIABLES:
        if variable.flag is not None and flags.get(variable.name) is not None:
            message = re.sub(rf"\b{variable.name}=", f"{variable.flag} ", message)
            message = re.sub(rf"^{variable.name}:", f"{variable.flag}:", message)
    return message


def in_address(host: str) -> str:
    """Return a host as it is written in an address: one of IPv6 has brackets."""
    return f"[{host}]" if ":" in host else host


def is_url(data: str) -> bool:
    """Whether a data location is an address rather than a directory."""
    return "://" in data


def without_credentials(location: str) -> str:
    """Return a location without the parts of an address that may hold a secret: user, password, query and fragment."""
    if not is_url(location):
        return location
    return re.sub(r"[?#].*", "", re.sub(r"^([^/]*//)[^/?#]*@", r"\1", location), flags=re.DOTALL)


def address_in(base: str, file: str) -> str:
    """Return the address of a file in the directory of address ``base``, with the query of that address."""
    parts = urlsplit(base)
    return urlunsplit(parts._replace(path=f"{parts.path.removesuffix('/')}/{file}", fragment=""))


def _is_encodable(text: str, encoding: str) -> bool:
    """Whether a text can be encoded; one that the environment gave with bytes that are not UTF-8 cannot."""
    try:
        text.encode(encoding)
    except UnicodeError:
        return False
    return True


def _port_or_none(name: str, text: str, example: str) -> int:
    port = _convert(name, text, int, "a port", example)
    if not 0 <= port < 65536:
        raise SettingsError(f"{name}={port}: a port lies from 1 to 65535; 0 opens no port")
    return port


def _path(name: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise SettingsError(f"{name}={text!r}: there is no such home directory; write the path without '~'") from None


def _path_in_messages(name: str, text: str) -> Path:
    if not _is_encodable(text, "utf-8"):
        raise SettingsError(f"{name}={text!r}: not UTF-8 text; rename the directory, or choose another one")
    return _path(name, text)


def _analysis(text: str, directory: str) -> tuple[Path, str]:
    """The directory and the name of an analysis, which is given as a name or as the path of a file."""
    if not text.endswith(".py"):
        return _path_in_messages("ANALYSES_DIR", directory), text
    path = _path_in_messages("ANALYSIS", text)
    if not is_name(path.stem):
        raise SettingsError(f"ANALYSIS={text!r}: the file's name is that of the analysis; {NAME_IS}")
    return path.parent, path.stem


def _certificate_authority(text: str) -> Path | None:
    if not text:
        return None
    path = _path("RABBITMQ_TLS_CA", text)
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # an SSLError is one, too
        raise SettingsError(
            f"RABBITMQ_TLS_CA={text!r}: {error.strerror or error}; give the PEM file of the authority that signed "
            "the broker's certificate"
        ) from None
    return path


def _location(text: str) -> str:
    checked = _checked_location(text)
    if checked is None or is_url(checked):
        return checked or ""
    try:
        return str(_path("DATA", checked).resolve())
    except (OSError, RuntimeError) as error:  # no working directory; before Python 3.13, a loop of symbolic links
        raise SettingsError(f"DATA={text!r}: {error}; give a directory that can be read") from None


def _checked_location(data: str | None) -> str | None:
    """A directory as it is, an address with '/' at its end, None for an empty text.

    An error shows nothing of a text that may be an address with a password.
    """
    if not data:
        return None
    is_path = not is_url(data) and not re.match(r"[\w+.-]+:/|[^/]*:[^/]*@", data)
    if "\0" in data or not _is_encodable(data, "utf-8"):
        raise SettingsError(
            f"DATA{f'={data!r}' if is_path else ''}: not UTF-8 text without null bytes; "
            "rename the directory, or write %XX for a byte of an address"
        )
    if is_path:
        return data
    try:
        parts = urlsplit(data)
        usable = parts.scheme in ("http", "https", "root") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    # An '@' after the host: the password before it has a '/', '?' or '#' that is not written as %2F, %3F or %23.
    if not usable or "@" in parts.path + parts.query + parts.fragment:
        scheme = re.match(r"\w+://", data)
        shown = f"{scheme[0] if scheme else ''}…" if not scheme or any(sign in data for sign in "@?#") else data
        raise SettingsError(
            f"DATA={shown!r}: an address starts with http://, https:// or root:// and a host; "
            "in a password or token, write %2F for '/', %3F for '?', %23 for '#' and %40 for '@'"
        )
    return urlunsplit(parts._replace(path=f"{parts.path.removesuffix('/')}/", fragment=""))


def _split(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _cuts(text: str) -> tuple[float, ...]:
    if not text.strip():
        return ()
    cuts = []
    for part in text.split(","):
        try:
            cuts.append(float(part))
        except ValueError:
            raise SettingsError(
                f"PT_CUTS={text!r}: {part.strip()!r} is not a number of GeV; write for example PT_CUTS=20,15,10"
            ) from None
    return tuple(cuts)


def _convert(name: str, text: str, convert: Callable[[str], T], what: str, example: str) -> T:
    try:
        return convert(text)
    except ValueError:
        raise SettingsError(f"{name}={text!r}: not {what}; write for example {name}={example}") from None
