"""`run.py pki init|issue|revoke|show CONFIG`: the certificates of the hospitals and of rank 0."""

import argparse
from pathlib import Path

from fedhpc.cli.common import Parser, add_kinds, add_set
from fedhpc.errors import InputError

HELP = "the certificates of the hospitals and of rank 0"
EXAMPLES = ("{run} pki init configs/fedavg.yaml", "{run} pki revoke configs/fedavg.yaml site3")
DAYS = 365
KINDS = {
    "init": (
        "a CA, and a certificate for the aggregator and each site of the config",
        ("{run} pki init configs/fedavg.yaml", "{run} pki init configs/fedavg.yaml --days 90 -o certificates"),
    ),
    "issue": (
        "a new key and certificate for one name, in place of its old ones",
        ("{run} pki issue configs/fedavg.yaml site3", "{run} pki issue configs/fedavg.yaml aggregator --days 30"),
    ),
    "revoke": (
        "refuse all certificates of one name that were issued so far",
        ("{run} pki revoke configs/fedavg.yaml site3", "{run} pki revoke configs/fedavg.yaml site3 -o certificates"),
    ),
    "show": (
        "all certificates, their expiry, and which are revoked",
        ("{run} pki show configs/fedavg.yaml", "{run} pki show configs/fedavg.yaml -o certificates"),
    ),
}


def add_arguments(parser: Parser) -> None:
    """Add the kinds of the command."""
    parser.describe("Keep the small certificate authority of the federation.", EXAMPLES)
    kinds = add_kinds(parser)
    for kind, (text, examples) in KINDS.items():
        one = kinds.add_parser(kind, help=text)
        one.describe(f"{text[0].upper()}{text[1:]}.", examples)
        one.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml)")
        if kind in ("issue", "revoke"):
            one.add_argument("name", metavar="NAME", help="a site, or aggregator")
        if kind in ("init", "issue"):
            one.add_argument("--days", type=int, default=DAYS, metavar="N", help="until it expires")
        one.add_argument("-o", "--out", type=Path, metavar="DIR", help="(default: exchange.pki of the config)")
        add_set(one)
        one.set_defaults(kind=kind)


def run(options: argparse.Namespace) -> int:
    """Do what the kind says, then show all certificates."""
    from fedhpc.config.loader import load_config
    from fedhpc.transport import pki
    from fedhpc.transport.tls import AGGREGATOR_NAME
    from fedhpc.util.text import fitted

    config = load_config(options.config, options.set)
    if options.kind != "show" and options.out is None and "{site}" in (config.exchange.pki or ""):
        raise InputError(
            f"exchange.pki={config.exchange.pki}: each rank has its own folder there, and the CA's key belongs into "
            "none of them. Name the folder of the CA: -o DIR, on a machine that is no rank's",
            code="command-line",
        )
    folder = options.out or config.exchange.pki_folder(config.data, AGGREGATOR_NAME)
    names = (AGGREGATOR_NAME, *config.site_names)
    if options.kind in ("issue", "revoke") and options.name not in names:
        raise InputError(
            f"{options.name}: no site of {options.config}; allowed: {', '.join(names)}", code="command-line"
        )
    if options.kind == "init":
        pki.init(folder, config.site_names, options.days)
    elif options.kind == "issue":
        pki.issue(folder, options.name, options.days)
    elif options.kind == "revoke":
        print(f"revoked {pki.revoke(folder, options.name)}; give {folder / 'crl.pem'} to every site and to rank 0")
    elif not folder.is_dir():
        raise InputError(f"{folder}: is no folder here. Give that of the CA: -o DIR", code="file.missing")
    rows = [(one.name, one.serial, one.expires, one.state) for one in pki.show(folder)]
    print(f"{folder}\n{fitted([('name', 'serial', 'expires', 'state'), *rows])}")
    return 0
