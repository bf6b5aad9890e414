"""The messages of the pipeline: frozen dataclasses with their own ``encode`` and ``decode``.

Arrays are sent as pickled awkward arrays, everything else as JSON. ``decode``
checks fields, types, lengths, names and ranges.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import msgspec

from common import array_pickle, topology
from common.analyses import Analyses, Analysis
from common.errors import MessageError, SettingsError
from common.names import MAX_NAME, NAME
from common.schema import Schema
from common.settings import RunSettings

if TYPE_CHECKING:
    import awkward as ak

#: RabbitMQ 4 refuses messages above 16 MiB by default.
MAX_MESSAGE_BYTES = 8 * 1024 * 1024

#: The most chunks that a sample of a run may have. Their bounds, of up to 20 characters, fit into one message.
MAX_CHUNKS = 200_000

#: A run's id, a sample's or a file's name.
Name = Annotated[str, msgspec.Meta(pattern=NAME, max_length=MAX_NAME)]
#: A number of events, entries or bytes; integers in the database have 64 bits.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
#: Seconds since 1970 (UTC), up to the year 9999.
Timestamp = Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
Stage = Literal["plan", "data-loader", "data-processor", "analysis"]
#: What happens to a chunk: see ``Span``.
Step = Literal["planned", "waited", "read", "selected", "published", "added"]
#: What a service does: it has nothing to do, handles a message, waits for the broker, or ends. It waits until it is
#: connected, or until the outcome of a message is accepted: the queue of that may be full.
State = Literal["idle", "busy", "waiting", "stopping"]

#: The file of a result folder that ``ResultFiles`` compresses: 27 MB for a run of 25,000 chunks.
TIMELINE = "timeline.json"
#: The most bytes of it that are decompressed.
MAX_TIMELINE_BYTES = 48 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Chunk:
    """One entry range ``start <= entry < stop`` of one sample's file, in one run."""

    run_id: Name
    sample: Name
    start: Count
    stop: Count

    def __post_init__(self) -> None:
        if self.stop < self.start:
            raise MessageError(f"chunk {self}: its entries end before they start")

    def __str__(self) -> str:
        return f"{self.sample}[{self.start}:{self.stop}]"


class Span(NamedTuple):
    """A period in the processing of a chunk, encoded as an array.

    ``service`` and ``replica`` are those that did the work. They ``read`` the chunk, ``selected`` its events,
    ``added`` it to the run (up to the commit to the database), or ``published`` it until the next queue had room.
    Before that it ``waited`` in the queue that the service consumes. The first chunk of a sample was ``planned``, with
    all others of the sample, instead: its file may have been fetched.

    ``start`` and ``end`` are in seconds since 1970, by the clock of the replica; the length of work is measured by
    its monotonic clock. ``redeliveries`` is how often the message had been delivered before, for example to a replica
    that was killed.
    """

    step: Step
    service: Name
    replica: Name
    start: Timestamp
    end: Timestamp
    redeliveries: Count = 0

    @property
    def seconds(self) -> float:
        """Its length; 0 where the clocks of two machines differ by more than that."""
        return max(0.0, self.end - self.start)


@dataclass(frozen=True)
class Software:
    """What a service is: the version and the commit of this project, where it runs, and the packages that it uses.

    ``platform`` says how it is run (``embedded``, ``docker``, ``kubernetes`` or ``process``) and on which system, for
    example ``docker, Linux x86_64``. ``packages`` has the version of Python and of each package that numbers depend on.
    """

    version: str
    commit: str
    platform: str
    packages: dict[str, str]


@dataclass(frozen=True)
class Message:
    """A message. ``kind`` names the class that decodes it; ``route`` is the queue or exchange that carries the kind."""

    kind: ClassVar[str]
    route: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Look the route up in the routing table; raises KeyError for a kind that no queue or exchange carries."""
        super().__init_subclass__()
        if "kind" in cls.__dict__ and "route" not in cls.__dict__:
            cls.route = topology.ROUTES[cls.kind]

    def encode(self) -> bytes:
        """Return the body; raises MessageError where it is larger than a message may be."""
        return _of_legal_size(msgspec.json.encode(self), self.kind)

    @classmethod
    def decode(cls, body: bytes, analyses: Analyses) -> Self:
        """Read a body; raises MessageError where it does not hold what the kind declares.

        Run settings are checked against ``analyses``.
        """
        message = _json(body, cls)
        settings = getattr(message, "settings", None)
        if not isinstance(settings, RunSettings):
            return message
        try:
            return replace(message, **{"settings": analyses.resolve(settings)})
        except SettingsError as error:
            raise MessageError(f"{cls.kind}: {error}") from None

    @property
    def headers(self) -> dict[str, str | int]:
        """The headers that identify the message as a dead letter, which is not decoded."""
        chunk = getattr(self, "chunk", None)
        names = ("digest",) if isinstance(chunk, Chunk) else ("run_id", "sample", "digest")
        found: dict[str, str | int] = asdict(chunk) if isinstance(chunk, Chunk) else {}
        return found | {name: value for name in names if isinstance(value := getattr(self, name, None), str) and value}


@dataclass(frozen=True)
class RunRequest(Message):
    """A request to run an analysis. ``submitted`` is in seconds since 1970 (UTC).

    Settings that the request leaves out are taken from the data-loader's environment.
    """

    kind: ClassVar[str] = "run-request"

    run_id: Name
    submitted: Timestamp
    settings: RunSettings

    @classmethod
    def decode(cls, body: bytes, analyses: Analyses, defaults: RunSettings | None = None) -> RunRequest:
        """Read a body; settings that it leaves out are taken from ``defaults``."""
        raw = _json(body, _RawRequest)
        try:
            settings = analyses.resolve(RunSettings.from_json(raw.settings, defaults))
        except SettingsError as error:
            raise MessageError(f"run {raw.run_id}: {error}") from None
        return cls(raw.run_id, raw.submitted, settings)


@dataclass(frozen=True)
class _RawRequest:
    run_id: Name
    submitted: Timestamp
    settings: dict[str, Any]


@dataclass(frozen=True)
class FileIdentity:
    """What identifies the file of a sample, so that all chunks of a run are read from the same one.

    ``location`` is its path or its address without credentials, ``adler32`` its
    checksum and ``uuid`` what ROOT wrote into its header. ``is_confirmed`` is False
    if it is a cached copy and the server could not be asked whether it has this version.
    """

    location: str
    bytes: Count
    adler32: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]
    uuid: Annotated[str, msgspec.Meta(pattern="^[0-9a-f-]{36}$")]
    is_confirmed: bool = True


@dataclass(frozen=True)
class FileTask(Message):
    """The task to open the file of one sample of a run and to split it into chunks."""

    kind: ClassVar[str] = "file-task"

    run_id: Name
    sample: Name
    settings: RunSettings

    @property
    def digest(self) -> str:
        """The digest of the run's settings."""
        return self.settings.digest


@dataclass(frozen=True)
class ChunkTask(Message):
    """The task to read one chunk, from the file that the sample's plan was made for.

    Without ``file``, as version 0.1 sent it, any file at the sample's location is read.
    """

    kind: ClassVar[str] = "chunk-task"

    chunk: Chunk
    settings: RunSettings
    file: FileIdentity | None = None

    @property
    def digest(self) -> str:
        """The digest of the run's settings."""
        return self.settings.digest


@dataclass(frozen=True)
class RunPlan(Message):
    """The start of a run, for the analysis: the settings name the samples that make it complete."""

    kind: ClassVar[str] = "run-plan"

    run_id: Name
    submitted: Timestamp
    settings: RunSettings

    @property
    def digest(self) -> str:
        """The digest of the run's settings."""
        return self.settings.digest


@dataclass(frozen=True)
class SamplePlan(Message):
    """The chunks that make one sample of a run complete and the file to read, or the problem with it.

    ``digest`` is that of the run's settings.
    """

    kind: ClassVar[str] = "sample-plan"

    run_id: Name
    sample: Name
    entries: Count = 0
    bounds: tuple[Count, ...] = (0,)
    problem: str | None = None
    file: FileIdentity | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        if len(self.bounds) > MAX_CHUNKS + 1:
            raise MessageError(f"sample-plan: {self.sample} has more than {MAX_CHUNKS} chunks")
        if any(stop <= start for start, stop in pairwise(self.bounds)):
            raise MessageError(f"sample-plan: the bounds of the chunks of {self.sample} do not rise")

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """The chunks between the bounds, in order."""
        return tuple(Chunk(self.run_id, self.sample, start, stop) for start, stop in pairwise(self.bounds))


@dataclass(frozen=True)
class ChunkFailed(Message):
    """A chunk that could not be read, and the reason. ``digest`` is that of the run's settings."""

    kind: ClassVar[str] = "chunk-failed"

    chunk: Chunk
    problem: str
    digest: str = ""
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class _ArrayHeader:
    chunk: Chunk
    settings: RunSettings
    cutflow: dict[str, Count]
    spans: tuple[Span, ...] = ()
    software: dict[str, Software] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrayMessage(Message):
    """The events of a chunk. ``cutflow`` counts the events left after each step so far.

    ``spans`` has what happened to the chunk so far, and ``software`` what the services are that did it, by their names.
    """

    chunk: Chunk
    settings: RunSettings
    cutflow: dict[str, int]
    events: ak.Array
    spans: tuple[Span, ...] = ()
    software: Mapping[str, Software] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The digest of the run's settings."""
        return self.settings.digest

    @classmethod
    def schema(cls, analysis: Analysis) -> Schema:
        """The columns of ``events`` that an analysis declares for this kind."""
        raise NotImplementedError

    def encode(self) -> bytes:
        """Pickle the header and the events; raises MessageError where they are too large for a message."""
        header = _ArrayHeader(self.chunk, self.settings, self.cutflow, self.spans, dict(self.software))
        body = array_pickle.dumps(header, self.events)
        return _of_legal_size(body, f"{self.chunk} (CHUNK_ENTRIES makes chunks smaller)")

    @classmethod
    def decode(cls, body: bytes, analyses: Analyses) -> Self:
        """Read a body; raises MessageError where the header or an event is not as its release declares."""
        unpickled = array_pickle.loads(body)
        try:
            header = msgspec.json.decode(unpickled.header, type=_ArrayHeader)
            settings = analyses.resolve(header.settings)
            analysis = analyses.of(settings)
            analysis.sample(header.chunk.sample)
        except (msgspec.MsgspecError, SettingsError, UnicodeDecodeError, RecursionError) as error:
            raise MessageError(f"{cls.kind}: {error}") from None
        if not header.cutflow.keys() <= set(analysis.steps):
            raise MessageError(f"{cls.kind}: the cutflow of {header.chunk} has steps that {analysis.release} has not")
        try:
            events = unpickled.array(cls.schema(analysis))
        except MessageError as error:
            raise MessageError(f"{cls.kind}: {header.chunk}: {error}") from None
        return cls(header.chunk, settings, header.cutflow, events, header.spans, header.software)


@dataclass(frozen=True)
class Events(ArrayMessage):
    """The events of a chunk that pass the loader's steps."""

    kind: ClassVar[str] = "events"

    @classmethod
    def schema(cls, analysis: Analysis) -> Schema:
        """The columns that the analysis declares for ``events``."""
        return analysis.events


@dataclass(frozen=True)
class Selected(ArrayMessage):
    """The selected events of a chunk, with their observables."""

    kind: ClassVar[str] = "selected"

    @classmethod
    def schema(cls, analysis: Analysis) -> Schema:
        """The columns that the analysis declares for ``selected``."""
        return analysis.selected


@dataclass(frozen=True)
class RunStarted(Message):
    """The start of a run, for the visualisation and followers: the first message of the run that they receive."""

    kind: ClassVar[str] = "run-started"

    run_id: Name
    settings: RunSettings


@dataclass(frozen=True)
class Progress(Message):
    """A stage has finished a range of entries. The range of the stage ``plan`` is all that is read of a sample.

    ``spans`` has all that happened to a chunk when the analysis adds it. It is empty for the other stages, in the
    answer to a status request, and for a chunk that was added before.
    """

    kind: ClassVar[str] = "progress"

    stage: Stage
    chunk: Chunk
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class FetchProgress(Message):
    """The progress of a download: bytes received so far, and in total where that is known."""

    kind: ClassVar[str] = "fetch-progress"

    run_id: Name
    sample: Name
    done_bytes: Count
    total_bytes: Count | None


@dataclass(frozen=True)
class Result(Message):
    """The document of result.json: a partial one, or the final one of the run (``final``).

    ``timeline`` is the content of timeline.json, compressed by zlib; empty for a partial one.
    """

    kind: ClassVar[str] = "result"

    run_id: Name
    final: bool
    result: dict[str, Any]
    timeline: bytes = b""


@dataclass(frozen=True)
class ServiceStatus(Message):
    """What a replica of a service does at the moment; published every second. One that is lost does no harm.

    Numbers are counted since the replica started, so that a rate is the difference of two messages.

    Parameters
    ----------
    service
        The name of the service.
    replica
        The name of the replica: its host name and process id, or in a container the host name alone.
    host, pid
        The host name and the process id. The services of an embedded run share one process.
    state
        What it does. The last message of a replica that is stopped says ``stopping``; one that is killed sends none.
    run, work
        The run and the chunk or sample that it handles, for example ``NAME[0:50000]``; empty if there is none.
    events
        The number of events (file entries) that it has handled.
    received_bytes
        The size of the messages that it has received, by queue.
    cpu_seconds
        The CPU time of its process and of the worker processes of that, ended ones included.
    rss_bytes
        The memory of these processes.
    since, at
        When the replica started and when this was sent, in seconds since 1970. If a service is busy for seconds,
        messages for it wait: compare ``at`` with that of other replicas, not with the clock.
    version
        The version of this project.
    """

    kind: ClassVar[str] = "service-status"

    service: Name
    replica: Name
    host: str
    pid: Count
    state: State
    run: str
    work: str
    events: Count
    received_bytes: dict[str, Count]
    cpu_seconds: Annotated[float, msgspec.Meta(ge=0)]
    rss_bytes: Count
    since: Timestamp
    at: Timestamp
    version: str


@dataclass(frozen=True)
class QueueState:
    """The number of messages that wait in a queue, without those that are being handled.

    ``limit`` is the number from which on publishers wait, None if there is none; ``dead_letters`` the number in its
    dead-letter queue, None if it has none.
    """

    messages: Count
    limit: Count | None
    dead_letters: Count | None


@dataclass(frozen=True)
class QueueStatus(Message):
    """The states of the queues by name; published every second. One that is lost does no harm.

    The visualisation asks the broker, without its management interface. A queue for which the broker does not answer
    is left out. ``at`` is in seconds since 1970.
    """

    kind: ClassVar[str] = "queue-status"

    queues: dict[str, QueueState]
    at: Timestamp


@dataclass(frozen=True)
class StatusRequest(Message):
    """A request for the progress or the outcome of a run; without a run id, of every run that is not complete.

    With the ``digest`` of the run's settings, the run is in the list of runs from then on.
    """

    kind: ClassVar[str] = "status-request"

    run_id: Name | None
    digest: str | None = None


@dataclass(frozen=True)
class RunListRequest(Message):
    """A request for the list of runs; its answer has the same ``request_id``."""

    kind: ClassVar[str] = "run-list-request"

    request_id: Name


@dataclass(frozen=True)
class RunSummary:
    """A run in the list of runs.

    Parameters
    ----------
    run_id
        Its id.
    state
        What the run does: it waits for its plan, is under way, is fitted, or how it has ended. The results of
        ``deleted`` runs were deleted after enough later ones.
    digest
        The digest of its settings; empty for a run that failed before it had any.
    analysis, release, samples
        The analysis, the release, and the number of samples; empty and 0 where the analysis service does not have the
        settings of the run.
    submitted
        When it was submitted, in seconds since 1970.
    seconds
        How long it has taken; None for a run that ended without a result.
    signal_strength, signal_strength_error
        μ and its error; None without a fit.
    problem
        Why it failed, or the first problem of its result.
    """

    run_id: Name
    state: Literal["waiting", "running", "fitting", "complete", "incomplete", "failed", "cancelled", "deleted"]
    digest: str
    analysis: str = ""
    release: str = ""
    samples: Count = 0
    submitted: Timestamp | None = None
    seconds: float | None = None
    signal_strength: float | None = None
    signal_strength_error: float | None = None
    problem: str | None = None

    @property
    def has_no_result(self) -> bool:
        """Whether the run has ended and its result does not exist, or not any more."""
        return self.state in ("failed", "cancelled", "deleted")


@dataclass(frozen=True)
class RunList(Message):
    """The latest runs, the newest first."""

    kind: ClassVar[str] = "run-list"

    request_id: Name
    runs: tuple[RunSummary, ...]


@dataclass(frozen=True)
class CancelRequest(Message):
    """A request to cancel a run; ``digest`` is that of the run's settings."""

    kind: ClassVar[str] = "cancel-request"

    run_id: Name
    digest: str


@dataclass(frozen=True)
class RunCancelled(Message):
    """A run was cancelled: its tasks and events are dropped."""

    kind: ClassVar[str] = "run-cancelled"

    run_id: Name


@dataclass(frozen=True)
class RunFailed(Message):
    """The end of a run without a result folder, and the reason.

    With ``digest``, only the request with settings of this digest has failed: the run has others, and goes on.
    """

    kind: ClassVar[str] = "run-failed"

    run_id: Name
    problem: str
    digest: str | None = None


@dataclass(frozen=True)
class ResultFiles(Message):
    """The files of the result folder of a finished run, by name."""

    kind: ClassVar[str] = "result-files"

    run_id: Name
    files: dict[Name, bytes]

    def encode(self) -> bytes:
        """Return the body, in which the timeline is compressed, or left out if the message is too large with it.

        Raises MessageError where it is too large without.
        """
        files = {name: zlib.compress(one) if name == TIMELINE else one for name, one in self.files.items()}
        body = msgspec.json.encode(replace(self, files=files))
        if len(body) > MAX_MESSAGE_BYTES and files.pop(TIMELINE, None) is not None:
            body = msgspec.json.encode(replace(self, files=files))
        return _of_legal_size(body, self.kind)

    @classmethod
    def decode(cls, body: bytes, analyses: Analyses) -> Self:
        """Read a body; raises MessageError where it is not one, or its timeline is too large."""
        message = super().decode(body, analyses)
        files = {name: decompress(one) if name == TIMELINE else one for name, one in message.files.items()}
        return replace(message, files=files)

    @property
    def result(self) -> dict[str, Any]:
        """The document of result.json; raises MessageError where there is none."""
        try:
            return msgspec.json.decode(self.files["result.json"], type=dict[str, Any])
        except (KeyError, msgspec.MsgspecError) as error:
            raise MessageError(f"the result files of run {self.run_id} have no valid result.json: {error}") from None


@dataclass(frozen=True)
class FirstFiles(ResultFiles):
    """The result with the first figure alone, when all chunks are analysed; the run may still be fitted."""

    kind: ClassVar[str] = "first-files"


@dataclass(frozen=True, kw_only=True)
class _DeadLetterHeaders(Message):
    """The headers of a dead letter, and the queue that it was in."""

    queue: str
    run_id: Name | None = None
    sample: Name | None = None
    start: Count | None = None
    stop: Count | None = None
    digest: str | None = None

    @property
    def chunk(self) -> Chunk | None:
        """The chunk that the headers name; None where they name none."""
        if self.run_id is None or self.sample is None or self.start is None or self.stop is None:
            return None
        return Chunk(self.run_id, self.sample, self.start, self.stop)

    @classmethod
    def from_headers(cls, queue: str, headers: Mapping[str, object], **said: str) -> Self:
        """Read the headers of a dead letter; raises MessageError for values that no message has."""
        names = ("run_id", "sample", "start", "stop", "digest")
        known = {name: headers[name] for name in names if headers.get(name) is not None}
        try:
            notice = msgspec.convert({"queue": queue, **said, **known}, cls)
            _ = notice.chunk  # raises where its entries end before they start
            return notice
        except msgspec.ValidationError as error:
            raise MessageError(f"headers of a dead letter of {queue}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class DeadLetterNotice(_DeadLetterHeaders):
    """The notice that a message was dead-lettered, and the reason."""

    kind: ClassVar[str] = "dead-letter"

    problem: str


@dataclass(frozen=True, kw_only=True)
class RequeueNotice(_DeadLetterHeaders):
    """The notice that a dead letter returns to its queue: its run waits for it again.

    ``notice_id`` is another one each time, so that a notice sent again changes nothing.
    """

    kind: ClassVar[str] = "requeued"

    notice_id: Name

    """A message. ``kind`` names the class that decodes it; ``route`` is the queue or exchange that carries the kind."""


#: Every kind of message.
KINDS: Mapping[str, type[Message]] = {
    message.kind: message
    for message in (
        RunRequest, FileTask, ChunkTask, RunPlan, SamplePlan, ChunkFailed,
        Events, Selected, RunStarted, Progress, FetchProgress, Result, StatusRequest, RunFailed, ResultFiles,
        FirstFiles, RequeueNotice, CancelRequest, RunCancelled, ServiceStatus, QueueStatus, RunListRequest, RunList,
    )
}  # fmt: skip

# msgspec 0.22 derives how to decode a class when the class is first decoded. Two threads that do this at the same time
# can crash the process, so it is done while this module is imported.
for _decoded in (*KINDS.values(), DeadLetterNotice, RunSettings, _RawRequest, _ArrayHeader):
    if not issubclass(_decoded, ArrayMessage):
        msgspec.json.Decoder(_decoded)


def run_of(message: Message) -> str | None:
    """Return the id of the run that a message is about, if it names one."""
    chunk = getattr(message, "chunk", None)
    return chunk.run_id if isinstance(chunk, Chunk) else getattr(message, "run_id", None)


def decode(kind: str, body: bytes, analyses: Analyses) -> Message:
    """Read a message of the given kind; raises MessageError where it is not one.

    Samples, columns and run settings are checked against ``analyses``.
    """
    if kind not in KINDS:
        raise MessageError(f"no message kind is called {kind!r}")
    if not body:
        raise MessageError(f"{kind}: the message is empty")
    return KINDS[kind].decode(_of_legal_size(body, kind), analyses)


def decompress(timeline: bytes) -> bytes:
    """Return the content of timeline.json; raises MessageError if zlib did not write the bytes, or it is too large."""
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(timeline, MAX_TIMELINE_BYTES)
    except zlib.error as error:
        raise MessageError(f"{TIMELINE} cannot be decompressed: {error}") from None
    if not unpacking.eof:
        raise MessageError(f"{TIMELINE} is incomplete, or has more than {MAX_TIMELINE_BYTES} bytes")
    return content


def _of_legal_size(body: bytes, what: str) -> bytes:
    if len(body) > MAX_MESSAGE_BYTES:
        raise MessageError(f"{what}: {len(body)} bytes are more than the {MAX_MESSAGE_BYTES} a message may have")
    return body


def _json(body: bytes, cls: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=cls)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, SettingsError) as error:
        raise MessageError(f"{getattr(cls, 'kind', 'message')}: {error}") from None
