"""The verbs `run.py pki` and `run.py egress`. What they use is imported when they run, so that `--help` is quick."""

import argparse
import json
from pathlib import Path

from fedhpc.errors import InputError

DAYS = 365


def add_pki(pki: argparse.ArgumentParser) -> None:
    """`run.py pki init|issue|revoke|show CONFIG`."""
    kinds = pki.add_subparsers(required=True, metavar="KIND")
    texts = {
        "init": "a CA, and a certificate for the aggregator and each site of the config",
        "issue": "a new key and certificate for one name, in place of its old ones",
        "revoke": "refuse the certificate of one name from now on",
        "show": "all certificates, their expiry, and which are revoked",
    }
    for kind, text in texts.items():
        verb = kinds.add_parser(kind, help=text)
        verb.add_argument("config", type=Path)
        if kind in ("issue", "revoke"):
            verb.add_argument("name", help="a site, or aggregator")
        if kind in ("init", "issue"):
            verb.add_argument("--days", type=int, default=DAYS, help="until it expires")
        verb.add_argument("-o", "--out", type=Path, help="the folder; default: exchange.pki of the config")
        verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config key")
        verb.set_defaults(verb=_pki, kind=kind)


def add_egress(egress: argparse.ArgumentParser) -> None:
    """`run.py egress RUN`."""
    egress.add_argument("run", type=Path, help="a run directory")
    egress.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    egress.set_defaults(verb=_egress)


def _pki(options: argparse.Namespace) -> int:
    from fedhpc.config.loader import load_config
    from fedhpc.transport import pki
    from fedhpc.transport.tls import AGGREGATOR_NAME
    from fedhpc.util.text import fitted

    config = load_config(options.config, options.set)
    folder = options.out or config.exchange.pki_folder(config.data, AGGREGATOR_NAME)
    names = (AGGREGATOR_NAME, *config.site_names)
    if options.kind in ("issue", "revoke") and options.name not in names:
        raise InputError(f"{options.name}: no site of {options.config}; allowed: {', '.join(names)}")
    if options.kind == "init":
        pki.init(folder, config.site_names, options.days)
    elif options.kind == "issue":
        pki.issue(folder, options.name, options.days)
    elif options.kind == "revoke":
        print(f"revoked {pki.revoke(folder, options.name)}; give {folder / 'crl.pem'} to every site and to rank 0")
    rows = [(one.name, one.serial, one.expires, one.state) for one in pki.show(folder)]
    print(f"{folder}\n{fitted([('name', 'serial', 'expires', 'state'), *rows])}")
    return 0


def _egress(options: argparse.Namespace) -> int:
    from fedhpc.report.egress import report

    found = report(options.run)
    print(json.dumps(found.facts, allow_nan=False) if options.json else found.text)
    return 0 if found.facts["holds"] else 1
