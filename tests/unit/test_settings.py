"""Settings: a flag overrides the variable, which overrides the default; the error for a wrong value says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from common import settings as settings_module
from common.errors import SettingsError
from common.settings import VARIABLES, BrokerSettings, RunSettings, Settings, address_in, as_typed, without_credentials
from physics import ANALYSES
from workers.data_loader.sources import check_directory

ALL_SAMPLES = (
    "data_A", "data_B", "data_C", "data_D", "Zee", "Zmumu", "ttbar_lep", "llll",
    "ggH125_ZZ4lep", "VBFH125_ZZ4lep", "WH125_ZZ4lep", "ZH125_ZZ4lep",
)  # fmt: skip


def read(environment: Mapping[str, str], flags: Mapping[str, str | None] | None = None) -> Settings:
    """Read settings as the command does: checked against the releases."""
    found = settings_module.read(environment, flags)
    return replace(found, run=ANALYSES.resolve(found.run))


def test_without_flags_and_variables_the_defaults_apply() -> None:
    settings = read({})
    run = settings.run
    assert (run.release, run.data, run.samples) == ("2020e-13tev", None, ALL_SAMPLES)
    assert (run.lumi_ifb, run.fraction, run.pt_cuts_gev) == (10.0, 1.0, (20.0, 15.0, 10.0))
    broker = settings.broker
    assert (broker.host, broker.port, broker.user, broker.password) == ("rabbitmq", 5672, "atlas", "atlas")
    assert settings.output == Path("results")


@pytest.mark.parametrize(
    ("name", "in_environment", "as_flag", "attribute", "expected"),
    [
        ("RELEASE", "2020e-13tev", "demo", "release", "demo"),
        ("DATA", "/a", "/b", "data", "/b"),
        ("SAMPLES", "llll", "Zee", "samples", ("Zee",)),
        ("LUMI", "5", "7.5", "lumi_ifb", 7.5),
        ("FRACTION", "0.5", "0.25", "fraction", 0.25),
        ("PT_CUTS", "30", "", "pt_cuts_gev", ()),
        ("DEMO_EVENTS", "1000", "2000", "demo_events", 2000),
        ("CHUNK_ENTRIES", "10", "20", "chunk_entries", 20),
        ("PLOTS", "1", "0", "plots", False),
        ("OUTPUT", "there", "here", "output", Path("here")),
    ],
)
def test_a_flag_overrides_its_environment_variable_and_that_the_default(
    name: str, in_environment: str, as_flag: str, attribute: str, expected: object
) -> None:
    def value(environment: dict[str, str], flags: dict[str, str | None]) -> object:
        settings = read(environment, flags)
        return getattr(settings, attribute, None) if name == "OUTPUT" else getattr(settings.run, attribute)

    both = value({name: in_environment}, {name: as_flag})
    assert both == expected
    assert value({}, {name: as_flag}) == expected
    only_environment = value({name: in_environment}, {name: None})
    assert only_environment != expected
    if name not in ("RELEASE", "PLOTS"):  # the variables that are given their defaults
        assert only_environment != value({}, {})


def test_the_broker_is_read_from_its_four_variables() -> None:
    variables = {"RABBITMQ_HOST": "h", "RABBITMQ_PORT": "5673", "RABBITMQ_USER": "u", "RABBITMQ_PASS": "p"}
    assert read(variables).broker == BrokerSettings("h", 5673, "u", "p")


def test_an_empty_variable_means_its_default_except_pt_cuts_where_it_means_no_cuts() -> None:
    assert read({"PT_CUTS": ""}).run.pt_cuts_gev == ()
    empty = dict.fromkeys(("RELEASE", "DATA", "SAMPLES", "LUMI", "FRACTION", "OUTPUT", "RABBITMQ_PORT"), "")
    assert read(empty) == read({})


@pytest.mark.parametrize("lumi", ["0.001", "139", "10000"])
def test_a_luminosity_may_be_anything_that_a_collider_delivers(lumi: str) -> None:
    assert read({"LUMI": lumi}).run.lumi_ifb == float(lumi)


@pytest.mark.parametrize("release", ["2020e-13tev", "demo"])
@pytest.mark.parametrize(
    ("samples", "lumi_ifb"),
    [
        ("", 10.0),
        ("data_A", 0.5),
        ("data_B", 1.9),
        ("data_A,data_B,data_C", 5.3),
        ("data_D,Zee", 4.7),
        ("data_A,data_B,data_C,data_D", 10.0),
        ("Zee,llll", 10.0),
    ],
)
def test_without_lumi_simulation_is_scaled_to_the_data_in_the_run(release: str, samples: str, lumi_ifb: float) -> None:
    assert read({"RELEASE": release, "SAMPLES": samples}).run.lumi_ifb == lumi_ifb
    assert read({"RELEASE": release, "SAMPLES": samples, "LUMI": "7"}).run.lumi_ifb == 7.0


@pytest.mark.parametrize("release", ANALYSES)
def test_without_lumi_and_pt_cuts_those_of_the_release_apply(release: str) -> None:
    analysis = ANALYSES[release]
    run = read({"RELEASE": release}).run
    assert (run.lumi_ifb, run.pt_cuts_gev) == (analysis.lumi_ifb, analysis.pt_cuts_gev)
    assert read({"RELEASE": release, "PT_CUTS": "25"}).run.pt_cuts_gev == (25.0,)
    too_many = ",".join(["1"] * (analysis.max_pt_cuts + 1))
    with pytest.raises(SettingsError, match=rf"PT_CUTS='{too_many}': .* give at most {analysis.max_pt_cuts}, for"):
        read({"RELEASE": release, "PT_CUTS": too_many})


def test_settings_that_are_resolved_already_stay_as_they_are() -> None:
    once = ANALYSES.resolve(RunSettings(samples=("data_B", "llll")))
    assert ANALYSES.resolve(once) == once


def test_an_unresolved_luminosity_or_cut_cannot_be_used() -> None:
    with pytest.raises(SettingsError, match="LUMI"):
        _ = RunSettings().luminosity_ifb
    with pytest.raises(SettingsError, match="PT_CUTS"):
        _ = RunSettings().cuts_gev


@pytest.mark.parametrize(
    ("text", "cuts"), [("20,15,10", (20.0, 15.0, 10.0)), ("20", (20.0,)), ("1, 2,3 ,4", (1.0, 2.0, 3.0, 4.0))]
)
def test_there_may_be_up_to_four_pt_cuts(text: str, cuts: tuple[float, ...]) -> None:
    assert read({"PT_CUTS": text}).run.pt_cuts_gev == cuts


def test_samples_are_in_the_order_of_the_release_and_each_once() -> None:
    assert read({"SAMPLES": " llll,data_B, Zee,llll ,data_B,"}).run.samples == ("data_B", "Zee", "llll")


def test_a_relative_data_directory_becomes_absolute_and_an_address_ends_in_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read({"DATA": "files"}).run.data == str(tmp_path / "files")
    assert read({"DATA": "https://host/4lep"}).run.data == "https://host/4lep/"
    assert read({"DATA": "root://host//eos/4lep/"}).run.data == "root://host//eos/4lep/"
    assert RunSettings.from_json({"data": "https://host/4lep"}).data == "https://host/4lep/"


def test_the_file_of_an_address_keeps_its_credentials_and_its_query() -> None:
    data = read({"DATA": "https://me:pw@host/4lep?token=x#part"}).run.data
    assert data == "https://me:pw@host/4lep/?token=x"
    assert address_in(data, "Data/a.root") == "https://me:pw@host/4lep/Data/a.root?token=x"
    assert without_credentials(data) == "https://host/4lep/"


@pytest.mark.parametrize(
    "data",
    [
        "https://me:s3cret/x@host/4lep",
        "https://me:1/s3cret@host/4lep",
        "https://me:s3#x@host/",
        "https://me:1?s3@host",
        "https://me:1#s3cret@host/",
        "https://me:s3cret@host:99999/",
        "https://?token=s3cret",
        "ftp://me:s3cret@h/",
        "https:/me:s3cret@host/4lep",
        "https:/host/4lep?token=s3cret",
        "https:me:s3cret@host",
        "me:s3cret@host/4lep",
        "me:s3cret@https://host/4lep",
    ],
)
def test_no_secret_of_an_unusable_address_is_shown(data: str) -> None:
    with pytest.raises(SettingsError, match="%2F") as caught:
        read({"DATA": data})
    assert "s3" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        RunSettings.from_json({"data": data, "lumi_ifb": "x"})
    assert "s3" not in str(caught.value)


def test_a_directory_may_have_a_colon_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read({"DATA": "./a:b@c"}).run.data == str(tmp_path / "a:b@c")


@pytest.mark.parametrize("data", ["d\udcff", "https://me:s3cret@host/d\udcff", "/d\0/s"])
def test_a_data_location_that_no_message_can_hold_is_refused(data: str) -> None:
    for make in (lambda: read({"DATA": data}), lambda: RunSettings.from_json({"data": data})):
        with pytest.raises(SettingsError, match=r"^DATA.*not UTF-8 text without null bytes") as caught:
            make()
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("CACHE", "c\udcff"), ("ANALYSES_DIR", "c\udcff"), ("ANALYSIS", "c\udcff/mine.py")]
)
def test_a_path_that_no_message_can_name_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name}='c.udcff(/mine.py)?': not UTF-8 text"):
        read({name: value})


def test_the_settings_of_a_result_show_no_credentials() -> None:
    settings = read({"DATA": "https://me:pw@host/4lep?token=x"}).run
    assert settings.to_result(toy=False)["data"] == settings.without_credentials().data == "https://host/4lep/"


def test_the_demo_release_takes_no_data_location() -> None:
    assert read({"RELEASE": "demo", "DATA": "/somewhere"}).run.data is None


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("LUMI", "-1", "LUMI=10"),
        ("LUMI", "0", "LUMI=10"),
        ("LUMI", "abc", "LUMI=10"),
        ("LUMI", "nan", "LUMI=10"),
        ("LUMI", "inf", "LUMI=10"),
        ("LUMI", "1e+300", "a luminosity lies from 0.001 to 10000 fb⁻¹"),
        ("LUMI", "1e-300", "LUMI=10"),
        ("LUMI", "1e+40", "LUMI=10"),
        ("LUMI", "10001", "LUMI=10"),
        ("LUMI", "0.000999", "LUMI=10"),
        ("FRACTION", "0", "FRACTION=0.5"),
        ("FRACTION", "2", "FRACTION=0.5"),
        ("FRACTION", "1.0000001", "FRACTION=0.5"),
        ("FRACTION", "nan", "FRACTION=0.5"),
        ("FRACTION", "half", "FRACTION=0.5"),
        ("PT_CUTS", "20,x", "PT_CUTS=20,15,10"),
        ("PT_CUTS", "20,", "PT_CUTS=20,15,10"),
        ("PT_CUTS", "5,4,3,2,1", "PT_CUTS=20,15,10"),
        ("PT_CUTS", "20,-15", "PT_CUTS=20,15,10"),
        ("PT_CUTS", "nan", "PT_CUTS=20,15,10"),
        ("PT_CUTS", "inf", "PT_CUTS=20,15,10"),
        ("SAMPLES", "Zee,Zee2", "Zmumu"),
        ("RELEASE", "2019", "2020e-13tev, 2025e-13tev-beta, demo"),
        ("RABBITMQ_PORT", "70000", "5672"),
        ("RABBITMQ_PORT", "0", "5672"),
        ("RABBITMQ_PORT", "amqp", "5672"),
        ("METRICS_PORT", "65536", "0 opens no port"),
        ("CHUNK_ENTRIES", "0", "1 to 80000"),
        ("PLOTS", "no", "PLOTS=0"),
        ("CHUNK_ENTRIES", "80001", "1 to 80000"),
        ("CHUNK_ENTRIES", "1e3", "CHUNK_ENTRIES=50000"),
        ("DEMO_EVENTS", "11", "12 to 1000000000"),
        ("DEMO_EVENTS", "many", "DEMO_EVENTS=200000"),
        ("RESULTS_KEEP", "-1", "0 for all"),
        ("RESULTS_KEEP", "100000000000000000000", "1 to 1,000,000"),
        ("LOG_LEVEL", "loud", "DEBUG, INFO, WARNING or ERROR"),
        ("DATA", "ftp://x", "https://"),
        ("DATA", "https://", "https://"),
        ("DATA", "http://[::1", "https://"),
        ("DATA", "~nobody-of-this-name/files", "without '~'"),
        ("OUTPUT", "~nobody-of-this-name", "without '~'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_variable_and_what_to_write(variable: str, value: str, advice: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read({variable: value})
    message = str(refused.value)
    assert message.startswith(f"{variable}=")
    assert value in message
    assert advice in message


def test_a_broker_address_overrides_the_settings_that_it_contains() -> None:
    ours = BrokerSettings("rabbitmq", 5672, "atlas", "secret")
    assert ours.with_url("amqp://other:5673") == BrokerSettings("other", 5673, "atlas", "secret")
    given = ours.with_url("amqp://me:p%2Fw%40x@[::1]/v%2Fh")
    assert given == BrokerSettings("::1", 5672, "me", "p/w@x", "v/h")


@pytest.mark.parametrize(
    "url",
    [
        "http://u:geheim@h",
        "amqp://u:geheim@",
        "amqp://u:geheim@h:port",
        "amqp://u:geheim@h:70000",
        "amqp://u:geheim@h:0",
        "amqp://u:a@geheim@h:0",
        "amqp://u:a/geheim@h",
        "amqp://u:a#geheim@h",
        "amqp://u:12/geheim@h",
        "amqp://u:12#geheim@h",
        "amqp://u:12?geheim@h",
        "amqp://u:12/geheim@h:5672/v",
        "amqp://u:12/a@geheim@h",
        "amqp://u:geheim",
        "amqp://h/v?password=geheim",
        "amqp://h/v#geheim",
        "amqp://u:geheim@[::1",
        "amqp:/u:geheim@h",
        "amqp://u:geheim%ff@h",
        "u:geheim@h:5672",
    ],
)
def test_a_wrong_broker_address_is_refused_and_its_password_never_shown(url: str) -> None:
    with pytest.raises(SettingsError, match=r"--broker .*an address like amqp://user:password@host:5672") as refused:
        BrokerSettings().with_url(url)
    assert "geheim" not in str(refused.value)


def test_an_address_as_the_host_of_the_broker_is_refused_without_its_password() -> None:
    with pytest.raises(SettingsError, match="RABBITMQ_HOST: not the name of a host") as refused:
        read({"RABBITMQ_HOST": "amqp://u:geheim@h"})
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "h\udcff", "h\0"])
def test_a_host_name_that_cannot_exist_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^RABBITMQ_HOST: not the name of a host"):
        read({"RABBITMQ_HOST": host})


@pytest.mark.parametrize("name", ["RABBITMQ_USER", "RABBITMQ_PASS", "RABBITMQ_VHOST", "MESSAGE_KEY"])
@pytest.mark.parametrize("text", ["geheim-0123456789\udcff", "geheim-0123456789\0"])
def test_broker_settings_that_amqp_cannot_hold_are_refused_and_not_shown(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: not UTF-8 text without null bytes") as refused:
        read({name: text})
    assert "geheim" not in str(refused.value)


def test_a_virtual_host_has_at_most_255_bytes() -> None:
    assert read({"RABBITMQ_VHOST": "v" * 255}).broker.vhost == "v" * 255
    for url in (f"amqp://h/{'v' * 256}", f"amqp://h/{'é' * 128}"):
        with pytest.raises(SettingsError, match=r"^--broker: RABBITMQ_VHOST: 256 bytes; .* at most 255"):
            BrokerSettings().with_url(url)


def test_settings_printed_as_text_show_neither_password_nor_key() -> None:
    settings = read({"RABBITMQ_PASS": "geheim", "MESSAGE_KEY": "geheim-0123456789"})
    assert (settings.broker.password, settings.broker.message_key) == ("geheim", "geheim-0123456789")
    assert "geheim" not in f"{settings} {settings!r} {settings.broker}"


def test_a_short_message_key_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="MESSAGE_KEY: 6 characters; a key has at least 16") as refused:
        read({"MESSAGE_KEY": "geheim"})
    assert "geheim" not in str(refused.value)


def test_tls_has_its_own_port_and_an_amqp_address_does_not_disable_it(tmp_path: Path) -> None:
    with_tls = BrokerSettings("h").with_url("amqps://there")
    assert (with_tls.tls, with_tls.tls_ca, str(with_tls)) == (True, None, "amqps://atlas@there:5671")
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    broker = read({"RABBITMQ_TLS_CA": str(authority)}).broker
    assert (broker.tls, broker.tls_ca, broker.port) == (True, authority, 5671)
    assert read({"RABBITMQ_TLS_CA": str(authority), "RABBITMQ_PORT": "5672"}).broker.port == 5672
    assert str(broker.with_url("amqp://there")) == "amqps://atlas@there:5671"
    assert str(broker.with_url("amqp://[::1]:5673/v")) == "amqps://atlas@[::1]:5673/v"


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "No such file"), ("", "no certificate"), ("geheim", "no cert")]
)
def test_a_file_without_a_certificate_authority_is_refused(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError) as refused:
        read({"RABBITMQ_TLS_CA": str(path)})
    assert str(refused.value).startswith(f"RABBITMQ_TLS_CA='{path}': ")
    assert expected in str(refused.value)
    assert "give the PEM file of the authority" in str(refused.value)


@pytest.mark.parametrize(
    ("fraction", "entries", "expected"),
    [(0.29, 100, 29), (0.1, 39, 3), (1.0, 554_279, 554_279), (0.57, 100, 57), (1e-5, 99_999, 0), (0.5, 0, 0)],
)
def test_a_fraction_of_a_files_entries_is_exact(fraction: float, entries: int, expected: int) -> None:
    assert RunSettings(fraction=fraction).entries_of(entries) == expected


def test_settings_missing_in_json_are_those_of_the_service() -> None:
    ours = RunSettings(release="demo", samples=("Zee",), lumi_ifb=5.0, demo_events=1000)
    assert RunSettings.from_json({}) == RunSettings()
    assert RunSettings.from_json({"lumi_ifb": None, "pt_cuts_gev": None}) == RunSettings()
    assert RunSettings.from_json({"fraction": 1, "pt_cuts_gev": [25, 20]}, ours) == RunSettings(
        release="demo", samples=("Zee",), lumi_ifb=5.0, demo_events=1000, pt_cuts_gev=(25.0, 20.0)
    )
    other_release = ANALYSES.resolve(RunSettings.from_json({"release": "2020e-13tev"}, ours))
    assert other_release.samples == ALL_SAMPLES, "our samples were chosen for another release"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"luminosity": 10}, "no setting 'luminosity'; it has release, data, samples, lumi_ifb"),
        ({3: 10}, "no setting 3"),
        ({"lumi_ifb": True}, "Expected `float | null`, got `bool`"),
        ({"lumi_ifb": "10"}, "Expected `float | null`, got `str`"),
        ({"lumi_ifb": 1e300}, "LUMI=1e+300"),
        ({"lumi_ifb": 1e-300}, "LUMI=1e-300"),
        ({"lumi_ifb": 1e40}, "LUMI=1e+40"),
        ({"lumi_ifb": float("nan")}, "LUMI=nan"),
        ({"lumi_ifb": 10**400}, "out of range"),
        ({"fraction": 0}, "FRACTION=0"),
        ({"chunk_entries": True}, "Expected `int`, got `bool`"),
        ({"chunk_entries": 10.5}, "Expected `int`, got `float`"),
        ({"samples": "Zee"}, "Expected `array`, got `str`"),
        ({"samples": ["Zee2"]}, "SAMPLES='Zee2'"),
        ({"samples": [1]}, "Expected `str`, got `int`"),
        ({"pt_cuts_gev": [False]}, "Expected `float`, got `bool`"),
        ({"pt_cuts_gev": 20}, "Expected `array | null`, got `int`"),
        ({"release": None}, "Expected `str`, got `null`"),
        ({"data": "file:///etc"}, "DATA='file:///etc'"),
        ({"data": 5}, "Expected `str | null`, got `int`"),
    ],
)
def test_a_wrong_setting_in_json_is_refused_with_the_reason(values: dict[Any, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as refused:
        ANALYSES.resolve(RunSettings.from_json(values))
    assert expected in str(refused.value)


def test_an_error_names_the_flag_that_was_typed_and_else_the_variable() -> None:
    message = "LUMI=-1: a luminosity lies from 0.001; write for example LUMI=10"
    assert as_typed(message, {"LUMI": "-1"}) == "--lumi -1: a luminosity lies from 0.001; write for example --lumi 10"
    assert as_typed(message, {"LUMI": None, "DATA": "x"}) == message
    assert as_typed("DATA: not UTF-8 text", {"DATA": "x"}) == "--data: not UTF-8 text"


@pytest.mark.parametrize(("variable", "value", "close"), [("RELEASE", "demoo", "demo"), ("SAMPLES", "Zmumuu", "Zmumu")])
def test_a_mistyped_release_or_sample_is_refused_with_the_closest_one(variable: str, value: str, close: str) -> None:
    with pytest.raises(SettingsError, match=rf"{value}'.*; did you mean '{close}'\? Choose one of .*demo|data_A"):
        read({"RELEASE": "demo", variable: value})


def test_the_readme_has_every_variable_with_its_flag_and_default() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for variable in VARIABLES:
        cells = [f"`{cell}`" if cell else "" for cell in (variable.name, variable.flag, variable.default)]
        assert f"| {cells[0]} | {cells[1]} | {cells[2]} | {variable.what} |" in readme


def test_a_data_directory_in_a_loop_or_a_deleted_directory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SettingsError, match="DATA="):
        check_directory(ANALYSES["2020e-13tev"], read({"DATA": str(tmp_path / "loop")}).run)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SettingsError, match=r"DATA='4lep'.*give a directory that can be read"):
        read({"DATA": "4lep"})
