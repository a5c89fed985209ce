"""The privacy ledgers of a rank's sites: opened and compared with what earlier runs have recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.privacy.ledger import SiteAccount
from fedhpc.records.checkpoint import saved_rounds
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.session import POOLED, Session
from fedhpc.run.start.recorded_heads import Recorded, check_recorded, recorded_heads
from fedhpc.site.account import open_account, permit_exact_evaluation, permit_without_privacy
from fedhpc.site.data.shard import Shard
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import broadcast_json, outgoing, run_on_all_ranks
from fedhpc.transport.messages import said


def open_accounts(
    config: RunConfig, directory: RunDirectory, transport: Transport, shards: Sequence[Shard]
) -> tuple[SiteAccount, ...]:
    """Open the site ledgers of this rank's sites, and find in them what earlier runs have recorded of them.

    Raises:
        PrivacyError: at every rank, where any is not as it must be, or its hospital demands privacy of a run without.
    """
    run = directory.path.resolve().name
    if not config.private:
        run_on_all_ranks(transport, lambda: permit_without_privacy(config, shards, run))
        return ()
    accounts = tuple(run_on_all_ranks(transport, lambda: [open_account(config, shard) for shard in shards]))
    run_on_all_ranks(transport, lambda: permit_exact_evaluation(config, shards, accounts, run))
    found = broadcast_json(
        transport, lambda: [asdict(one) for one in recorded_heads(directory.path, config.site_names)]
    )
    run_on_all_ranks(transport, lambda: check_recorded(config, accounts, [Recorded(**one) for one in found]))
    return accounts


def open_ledgers(session: Session, heads: Mapping[str, str]) -> tuple[str, ...]:
    """Read back what the learners have spent; nothing to do without privacy.

    Args:
        session: this rank's.
        heads: of each learner's ledger, by the record of the round that the run goes on from; empty at its start.

    Returns:
        what the user must know before the first step, one line a shard; only at rank 0.

    Raises:
        PrivacyError: at every rank, where any ledger is not as it must be.
    """
    if not session.config.private:
        return ()
    transport = session.transport
    forecasts = run_on_all_ranks(transport, lambda: _kept_ledgers(session, heads))
    payloads = transport.gather([outgoing(transport, text).encode() for text in forecasts], "hello")
    return tuple(said(payload) for payload in payloads if payload)


def _kept_ledgers(session: Session, heads: Mapping[str, str]) -> list[str]:
    """Open the ledger of each learner of this rank; return what it and the run will have spent, a text each."""
    for learner in session.learners:
        path, folder = session.directory.ledger(learner.name), session.directory.site(learner.name)
        trained = max(saved_rounds(folder, "residual") + saved_rounds(folder, "model"), default=0)
        if (trained or learner.name in heads) and not path.exists():
            raise PrivacyError(
                f"{path}: is missing beside a checkpoint of round {trained}: what was spent is not known; restore it "
                "from a backup, or start a new run: the site ledger still counts it",
                code="resume.ledger-missing",
            )
        mine = [account for account in session.accounts if learner.name in (account.site, POOLED)]
        learner.keep_ledger(path, session.directory.path.resolve().name, mine)
        if learner.name in heads:
            learner.budget.ledger.check_head(heads[learner.name])
    return ["\n".join(learner.budget.forecast()) for learner in session.learners]
