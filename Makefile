# The commands of this project; `make help` lists them.

PYTHON ?= python3
PORT ?= 8025
# How long `make fuzz` runs each target, and which: all of them if none is named.
SECONDS ?= 60
TARGET ?=
# How many processes `make test` spreads the tests over.  More than processors, for many tests wait.
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin

# What the tests run against, from Debian; curl and openssl are often there already.
PEERS := postfix swaks curl msmtp openssl strace mandoc iproute2 dovecot-imapd tinycdb \
    python3-gdbm python3-openssl libnet-ssleay-perl gnutls-bin dovecot-pop3d slapd ldap-utils \
    fail2ban gsasl python3-systemd systemd-journal-remote btrfs-progs haproxy logrotate jq \
    systemd libseccomp2 ucspi-tcp stunnel4 libevent-2.1-7 libtirpc3 libwrap0 libbsd0
PEER_PROGRAMS := smtp-sink postfix swaks curl msmtp openssl strace mandoc ip dovecot cdb gnutls-cli \
    /usr/lib/dovecot/pop3-login slapd ldapwhoami fail2ban-regex gsasl mkfs.btrfs haproxy logrotate jq \
    /lib/systemd/systemd-journal-remote systemd-analyze tcpserver stunnel4 xinetd inetd checkbashisms
# Of these only one can be installed, or one would bring too much: the program alone does.
EXTRACTED := xinetd:usr/sbin/xinetd openbsd-inetd:usr/sbin/inetd devscripts:usr/bin/checkbashisms
# What the documents are tried with: shells, formatters, clients, servers.
PEERS += man-db groff-base zsh fish jq mutt git nginx-light libnginx-mod-stream
PEER_PROGRAMS += man groff zsh fish jq mutt git nginx

.PHONY: help run test unit lint format types check fuzz bench bench-engine peers clean \
    venv-package

help:
	@echo "make run     try it: tofmipd and a mail server that files mail, all below .demo/"
	@echo "make test    all tests, with what they need installed (Debian packages when root)"
	@echo "make unit    only the tests that need no other program"
	@echo "make check   lint, format, types and all tests, as CI does"
	@echo "make format  format the code and sort the imports"
	@echo "make fuzz    look for inputs that break a promise: SECONDS=60 each, TARGET=session"
	@echo "make bench   measure tofmipd beside other programs"
	@echo "make bench-engine  measure filters, lists and tagging alone"
	@echo "make clean   remove what the above made"

run: $(VENV)/.package
	@trap : INT; $(BIN)/tofmipd demo --directory .demo --port $(PORT)

test: $(VENV)/.tools peers
	@$(BIN)/python -m compileall -q tofmipd
	@PATH="$(CURDIR)/$(BIN):$$PATH:/usr/sbin" PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest \
	    --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

unit: $(VENV)/.tools
	@$(BIN)/python -m pytest --ignore=tests/system

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.tools
	$(BIN)/mypy tofmipd
	$(BIN)/mypy bench

check: lint types test

fuzz: $(VENV)/.fuzzer
	@$(BIN)/python tests/fuzz/run.py $(TARGET) --seconds $(SECONDS)

bench: $(VENV)/.tools
	@$(BIN)/python bench/compare.py --quick

bench-engine: $(VENV)/.tools
	@$(BIN)/python bench/engine.py --quick

clean:
	rm -rf $(VENV) .demo bench/build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	    tests/fuzz/corpus tests/fuzz/found

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "tofmipd needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 69; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(MAKE) --no-print-directory venv-package
	$(PYTHON) -m venv $(VENV)

# Debian keeps what makes a virtual environment in a package of its own.
venv-package:
	@test "$$(id -u)" = 0 || { echo "first: sudo apt install python3-venv" >&2; exit 69; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv

$(VENV)/.package: setup.py pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.tools: requirements-dev.txt $(VENV)/.package
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

# The fuzzer is no part of the tools: no test needs it, and not every Python has it.
$(VENV)/.fuzzer: requirements-fuzz.txt $(VENV)/.tools
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-fuzz.txt
	@touch $@

# Postfix and slapd are installed unconfigured, and all under a policy that starts no service; what
# is new is not started at boot either: the tests run instances of their own.
peers:
	@for program in $(PEER_PROGRAMS); do \
	    PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || missing="$$missing $$program"; \
	done; \
	/usr/bin/python3 -c 'import dbm.gnu' 2>/dev/null || missing="$$missing python3-gdbm"; \
	/usr/bin/python3 -c 'import OpenSSL' 2>/dev/null || missing="$$missing python3-openssl"; \
	/usr/bin/python3 -c 'import systemd.journal' 2>/dev/null || missing="$$missing python3-systemd"; \
	perl -e 'use Net::SSLeay' 2>/dev/null || missing="$$missing libnet-ssleay-perl"; \
	if test -z "$$missing"; then exit 0; fi; \
	if test "$$(id -u)" != 0; then \
	    echo "not installed:$$missing; tests that need them are skipped (sudo apt install $(PEERS))" >&2; \
	    exit 0; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends debconf && \
	printf '%s\n' "postfix postfix/main_mailer_type select No configuration" \
	    "slapd slapd/no_configuration boolean true" | debconf-set-selections && \
	policy=/usr/sbin/policy-rc.d; made=; \
	if test ! -e $$policy; then \
	    printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; made=$$policy; \
	fi; \
	apt-get install -y -qq --no-install-recommends $(PEERS); status=$$?; \
	test -z "$$made" || rm -f "$$made"; \
	for service in dovecot slapd fail2ban haproxy stunnel4 nginx; do \
	    case "$$missing" in *" $$service"*) update-rc.d $$service disable 2>/dev/null;; esac; \
	done; \
	for pair in $(EXTRACTED); do \
	    program=$${pair##*/}; directory=$$(mktemp -d); \
	    command -v $$program >/dev/null || ( cd $$directory && \
	    apt-get download -qq -o APT::Sandbox::User=root $${pair%%:*} && \
	    dpkg-deb --fsys-tarfile *.deb | tar -x -f - --to-stdout ./$${pair#*:} >$$program && \
	    install -m 755 $$program /usr/local/sbin/ ) || status=$$?; \
	    rm -r $$directory; \
	done; \
	exit $$status
