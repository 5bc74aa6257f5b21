"""What the daemon takes from its environment (TO-86): in global mode nothing that is one user's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clients import submit
from running import usual_umask

TO = "x@example.net"


def site_file(directory: Path, text: str) -> str:
    """A configuration that all can read; its path."""
    with usual_umask():
        directory.mkdir(exist_ok=True)
        path = directory / "tmdarc größer"
        path.write_text(text)
    return str(path)


def test_tmdarc_names_the_configuration(start, home, hop, tmp_path):
    """The filter is still that of the home."""
    other = tmp_path / "config größer"
    other.write_text((home.tmda / "config").read_text() + 'RECIPIENT_DELIMITER = "+"\n')
    home.write("config", "nonsense\n")
    home.write("filters/outgoing", "to * ext=home\n")
    daemon = start(home, variables={"TMDARC": str(other)})
    assert submit(daemon.port, TO).startswith("250")
    assert hop.message(TO).sender == "bobby+home@example.org"


def test_a_missing_file_of_tmdarc_is_no_reason_to_take_another(start, home, hop, tmp_path):
    daemon = start(home, variables={"TMDARC": str(tmp_path / "missing")})
    assert submit(daemon.port, TO).startswith("554 5.3.5 You have no TMDA configuration")
    assert hop.messages() == []


def test_a_tilde_in_the_variables_is_the_home(start, home, hop):
    home.write("other/config", (home.tmda / "config").read_text())
    home.write("other/rules", "to * ext=other\n")
    (home.tmda / "config").unlink()
    variables = {"TMDARC": "~/.tmda/other/config", "TMDA_FILTER_OUTGOING": "~/.tmda/other/rules"}
    daemon = start(home, variables=variables)
    assert submit(daemon.port, TO).startswith("250")
    assert hop.message(TO).sender == "bobby-other@example.org"


def test_tmda_filter_outgoing_goes_before_the_configuration(start, home, hop, tmp_path):
    rules = tmp_path / "rules größer"
    rules.write_text("to * ext=variable\n")
    home.write("rules", "to * ext=configuration\n")
    config = (home.tmda / "config").read_text()
    home.write("config", config + 'FILTER_OUTGOING = "~/.tmda/rules"\n')
    daemon = start(home, variables={"TMDA_FILTER_OUTGOING": str(rules)})
    assert submit(daemon.port, TO).startswith("250")
    assert hop.message(TO).sender == "bobby-variable@example.org"


def test_an_option_goes_before_tmdarc(start, home, hop, tmp_path):
    """TO-75."""
    (tmp_path / "all/bobby").mkdir(parents=True)
    config = (home.tmda / "config").read_text()
    (tmp_path / "all/bobby/config").write_text(config + 'ACTION_OUTGOING = "ext=option"\n')
    daemon = start(home, "-c", str(tmp_path / "all"), variables={"TMDARC": str(tmp_path / "x")})
    assert submit(daemon.port, TO).startswith("250")
    assert hop.message(TO).sender == "bobby-option@example.org"


def test_global_tmdarc_names_the_site_s_configuration(start, home, hop, tmp_path):
    """The user's own is read after it."""
    site = site_file(
        tmp_path / "site",
        'ACTION_OUTGOING = "ext=site"\nRECIPIENT_DELIMITER = "+"\nTMDARC = "/no/such/file"\n',
    )
    home.write("config", (home.tmda / "config").read_text() + 'RECIPIENT_DELIMITER = "="\n')
    variables = {"GLOBAL_TMDARC": site, "TMDARC": str(home.tmda / "config")}
    daemon = start(home, variables=variables)
    assert submit(daemon.port, TO).startswith("250")
    assert hop.message(TO).sender == "bobby=site@example.org"


def test_the_site_s_configuration_may_name_the_user_s(start, home, hop, tmp_path):
    site = site_file(tmp_path / "site", 'TMDARC = "~/.tmda/elsewhere"\n')
    config = (home.tmda / "config").read_text()
    home.write("elsewhere", config + 'ACTION_OUTGOING = "ext=elsewhere"\n')
    home.write("config", "nonsense\n")
    daemon = start(home, variables={"GLOBAL_TMDARC": site})
    assert submit(daemon.port, TO).startswith("250")
    assert hop.message(TO).sender == "bobby-elsewhere@example.org"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TMDARC": "", "TMDA_FILTER_OUTGOING": "", "GLOBAL_TMDARC": ""}, "250"),
        ({"GLOBAL_TMDARC": "/no/such/file"}, "250"),
        ({"TMDANAME": "x", "TMDAHOST": "y", "TMDAUSER": "z", "QMAILUSER": "q"}, "250"),
    ],
    ids=["empty", "no such file", "of tmda-inject"],
)
def test_other_values_change_nothing(variables, said, start, home, hop):
    assert submit(start(home, variables=variables).port, TO).startswith(said)
    assert hop.message(TO).sender.startswith("bobby-dated-")


# In global mode.


@pytest.fixture
def directory(village):
    path = village.directory / "environment größer"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.root
def test_in_global_mode_variables_of_one_user_have_no_effect(village, village_hop, directory):
    bobby, chloe, _ = village.people
    bobby.write("filters/outgoing", "to * ext=own\n")
    other = site_file(directory, "to * ext=variable\n")
    variables = {
        "TMDARC": other,
        "TMDA_FILTER_OUTGOING": other,
        "TMDAHOST": "wrong.example",
        "HOME": "/root",
        "USER": "root",
    }
    with village.daemon(variables=variables) as daemon:
        for person in (bobby, chloe):
            sent = submit(daemon.port, TO, login=person.name, password=person.password)
            assert sent.startswith("250")
    first, second = village_hop.messages()
    assert first.sender == "bobby-own@example.org"
    assert second.sender.startswith("bobby-dated-")


@pytest.mark.root
def test_in_global_mode_global_tmdarc_names_the_site_s_configuration(
    village, village_hop, directory
):
    """It is executed as the user, without the daemon's environment."""
    bobby, chloe, _ = village.people
    site = site_file(
        directory,
        "import os\n"
        'ADDED_HEADERS_CLIENT = {"X-Site": f"{os.getuid()} {os.environ.get(\'SECRET\')}"'
        " f\" {os.environ['HOME']} {os.environ['LOGIN']} {os.getcwd()}\"}\n",
    )
    with village.daemon(variables={"GLOBAL_TMDARC": site, "SECRET": "x"}) as daemon:
        for person in (bobby, chloe):
            sent = submit(daemon.port, TO, login=person.name, password=person.password)
            assert sent.startswith("250")
    for person, stored in zip((bobby, chloe), village_hop.messages(), strict=True):
        wanted = f"{person.uid} None {person.home.path} {person.name} /"
        assert stored.value("X-Site") == wanted


@pytest.mark.root
def test_in_global_mode_the_site_may_want_declarative_files(village, village_hop, directory):
    """TO-88."""
    bobby, chloe, _ = village.people
    bobby.write("config", "[TMDA_CONFIG]\naction_outgoing = ext=ini\n")
    chloe.write("config", "import os\n")
    host = f'MAIL_TRANSPORT = "smtp"\nSMTPHOST = "127.0.0.1:{village_hop.port}"\n'
    site = site_file(directory, host + "CONFIG_EXEC = False\n")
    with village.daemon(variables={"GLOBAL_TMDARC": site}) as daemon:
        sent = submit(daemon.port, TO, login=bobby.name, password=bobby.password)
        assert sent.startswith("250")
        sent = submit(daemon.port, TO, login=chloe.name, password=chloe.password)
        assert sent.startswith("451 4.3.5 Error in your TMDA files: config")
    (stored,) = village_hop.messages()
    assert stored.sender == "bobby-ini@example.org"
