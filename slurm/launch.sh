#!/usr/bin/env bash
# What the sbatch files share; they source it. Three functions are of use elsewhere: `launch CONFIG ARGUMENTS...` runs
# `run.py train` over the tasks of this allocation, `hold_for_restart` queues the job again if it stopped early, and
# `stage_shards FROM SITE...` copies the shards to the nodes' own disks first.
#
# Set before sourcing, where needed:
#   container=(apptainer exec --nv fedhpc.sif)   what to put before `python`
#   most_restarts=50                             a job that never gets on is not queued again for ever
#   fault_tolerant=1                             start the ranks by `mpirun --with-ft ulfm`, so that the others go on where
#                                                one ends (Open MPI 5; the config says faults.on_death: continue)
#   launcher_patience_s=60                       how long that mpirun may live on after the last rank of this node

launcher_patience_s=${launcher_patience_s:-60}
most_restarts=${most_restarts:-50}
told_to_stop=
child=

say() { echo "launch: $* ($SECONDS s)"; }

fail() {
    echo "launch: $1" >&2
    echo "HINT: $2" >&2
    exit 2
}

# Where the program comes from: what setup.sh made on a shared file system, a loaded module, or a container.
find_program() {
    if [ -z "${container+set}" ] && [ -f .venv/bin/activate ]; then
        # shellcheck source=/dev/null
        . .venv/bin/activate
    fi
    program=("${container[@]+"${container[@]}"}" python run.py)
    "${program[@]}" world --help >/dev/null 2>&1 || fail "'${program[*]}' does not run on $(uname -n)" \
        "on a login node: sh setup.sh; or load the site's Python module, or set container= in the sbatch file"
}

set_environment() {
    # srun no longer takes --cpus-per-task from sbatch by itself (SLURM 22.05 and later).
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
    export OMP_NUM_THREADS=$SRUN_CPUS_PER_TASK
    export OMP_WAIT_POLICY=PASSIVE
    # A rank that waits lets others have its core.
    export OMPI_MCA_mpi_yield_when_idle=1
    # With SLURM's default fence Open MPI 5 crashed in one start of four over several nodes; with this one in none of 700.
    export SLURM_PMIX_FENCE=ring
}

# How ranks are started: the first way under which every rank sees all the others. Under the wrong `srun --mpi` each is
# alone in a world of one, so the way is tried out, not guessed.
choose_launcher() {
    local tasks=$SLURM_NTASKS way said
    if [ "$tasks" = 1 ]; then
        launcher=(srun --ntasks=1)
        return
    fi
    local ways=("srun --mpi=pmix" "srun --mpi=pmi2" mpirun)
    local spread=node
    if [[ ${SLURM_TASKS_PER_NODE:-} =~ ^([0-9]+)(\(x[0-9]+\))?$ ]]; then
        spread=ppr:${BASH_REMATCH[1]}:node
    fi
    if [ -n "${fault_tolerant:-}" ]; then
        # By itself mpirun fills the first node; SLURM has said how many ranks belong on each.
        # Never under srun, where it is not supported. Connections that are made late may hang after a failure.
        ways=("mpirun --with-ft ulfm")
        export OMPI_MCA_mpi_preconnect_mpi=1
    fi
    for way in "${ways[@]}"; do
        case $way in
            "mpirun --with-ft ulfm") launcher=(mpirun --with-ft ulfm --map-by "$spread:oversubscribe" -n "$tasks") ;;
            mpirun) launcher=(mpirun -n "$tasks") ;;
            *) launcher=("srun" "${way#srun }" "--ntasks=$tasks" --kill-on-bad-exit=1) ;;
        esac
        said=$(timeout 120 "${launcher[@]}" "${program[@]}" world 2>&1) || said="failed: $said"
        if [ "$(grep -cx "$tasks" <<<"$said")" = "$tasks" ]; then
            say "$way: every one of $tasks ranks sees all of them"
            return
        fi
        say "$way does not fit this MPI: wanted $tasks ranks that see $tasks, found: $(sort <<<"$said" | uniq -c | head -n 5)"
    done
    fail "no way to start $tasks MPI ranks was found" \
        "use the MPI library that the site built for SLURM ('srun --mpi=list'), and build mpi4py against it"
}

# SIGUSR1 comes before the time limit (--signal), SIGTERM when the job must go. Both reach the ranks as SIGUSR1: they
# finish or leave their round, save it and end.
stop_ranks() {
    told_to_stop=$1
    [ -n "$child" ] || return 0
    say "SIG$1: telling the ranks to stop"
    # They may have ended by themselves just now.
    kill -USR1 "$child" 2>/dev/null || true
}

launch() {
    # Never inside a step: srun in srun would start the ranks of every rank.
    [ -z "${SLURM_STEP_NODELIST:-}${OMPI_COMM_WORLD_SIZE:-}" ] || fail "already inside a job step" \
        "submit this file with sbatch, and start it neither with srun nor with mpirun"
    local arguments=("$@") status=0 said
    # A config of the user's own takes the place of the first argument.
    case ${2:--} in -*) ;; *) arguments=("${@:2}") ;; esac
    trap 'stop_ranks USR1' USR1
    trap 'stop_ranks TERM' TERM
    find_program
    set_environment
    say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}"
    # Said now: a job that is cancelled may be killed before it can say anything.
    ! cancels_preempted || say "this partition cancels preempted jobs (PreemptMode=CANCEL); to go on then: $(same_command)"
    choose_launcher
    mkdir -p runs
    # The ranks' own exit status: srun's is 143 where one ended before the others.
    local own=runs/.status-$SLURM_JOB_ID
    rm -f "$own"
    if [ -n "$told_to_stop" ]; then
        hold_for_restart
    fi
    "${launcher[@]}" "${program[@]}" train "${arguments[@]}" --status "$own" &
    child=$!
    [ "${launcher[0]}" != mpirun ] || end_hung_launcher "$child" &
    # A signal ends the wait, not the child.
    until wait "$child" || ! kill -0 "$child" 2>/dev/null; do :; done
    wait "$child" || status=$?
    child=
    if has_ended "$own" "$status"; then
        # 75 from the first round on: as the ranks left it, where they were killed. Read once: with its launcher gone a
        # rank may live on for seconds, and fail.
        said=$(<"$own")
        [ "$said" != 75 ] || [ "$status" = 75 ] || [ -n "$told_to_stop" ] || every_node_answers ||
            say "a node of this job does not answer any more"
        status=$said
        rm -f "$own"
    elif ! every_node_answers; then
        # Ranks end as soon as one is lost, minutes before SLURM gives up its node and would queue the job again.
        say "a node of this job does not answer any more"
        status=75
    elif [ "$status" = 0 ]; then
        say "the launcher ended with 0, but no rank has said that the run ended: it failed, see above"
        status=1
    fi
    [ "$status" != 75 ] || hold_for_restart
    exit "$status"
}

# Open MPI's launcher may wait for ever once ranks were killed (seen with 5.0.11). Rank 0 is on this node, and a run is
# over once it has ended: whatever a launcher without a living rank here waits for, it is not the run.
end_hung_launcher() {
    local alone_s=0 has_started=
    while kill -0 "$1" 2>/dev/null; do
        sleep 5
        # Its child srun, which keeps the daemons of other nodes, is no rank.
        if ps -o stat=,comm= --ppid "$1" | awk '$1 !~ /^Z/ && $2 != "srun" { ranks = 1 } END { exit !ranks }'; then
            has_started=1
            alone_s=0
        elif [ -n "$has_started" ] && [ $((alone_s += 5)) -ge "$launcher_patience_s" ]; then
            say "mpirun lives on without ranks: ending it"
            kill -KILL "$1"
            return
        fi
    done
}

# Whether the run has written how it ended. A launcher's own 0 is no proof: mpirun gives it with a lost daemon, and under
# ULFM. Where rank 0 is on another node, a shared file system may show the file some seconds late.
has_ended() {
    local tries=1
    [ "$2" != 0 ] || tries=15
    until [ -e "$1" ]; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 1
        ls "$(dirname "$1")" >/dev/null
    done
}

# `stage_shards FROM SITE...`: one site for each task, in the config's order ("-" for a dedicated aggregator). Each task
# copies its own hospital's shard, and no other, to its node's disk; what lies beside the shards (certificates, ledgers)
# is linked. The config then has `shards: $FEDHPC_SHARDS/{site}.h5`. When the job ends the copies are removed.
stage_shards() {
    local from
    from=$(realpath "$1")
    shift
    [ "$#" = "$SLURM_NTASKS" ] || fail "stage_shards: $# sites for $SLURM_NTASKS tasks" "name one site for each task"
    export FEDHPC_SHARDS=${TMPDIR:-/tmp}/fedhpc-$SLURM_JOB_ID
    trap unstage EXIT
    srun --ntasks="$SLURM_NTASKS" bash -c "$(declare -f stage_own); stage_own \"\$@\"" stage "$from" "$FEDHPC_SHARDS" "$@" ||
        fail "the shards in $from could not be copied to $FEDHPC_SHARDS" \
            "see above: is every site.h5 there, and is there room on the nodes' disks?"
    say "each node has copies of its own shards in $FEDHPC_SHARDS"
}

# What one task copies: `stage_own FROM TO SITE...`, a site for each task. Job numbers are easily guessed, and /tmp is
# everybody's: a folder that somebody else has put there would let them read or exchange the shards.
stage_own() {
    set -eu
    local from=$1 to=$2 path
    shift $((2 + SLURM_PROCID))
    umask 077
    mkdir -p "$(dirname "$to")"
    mkdir "$to" 2>/dev/null || true # another task of this node may have made it
    # Not all of the mode: in a folder with the setgid bit, as group scratch has it, it is 2700.
    if [ -L "$to" ] || [ ! -O "$to" ] || [ $((0$(stat -c %a "$to") & 077)) != 0 ]; then
        echo "$to: was there before, and is not a folder of this account alone" >&2
        exit 1
    fi
    for path in "$from"/*; do
        case $path in *.h5) ;; *) ln -sfn "$path" "$to/" ;; esac
    done
    [ "$1" = - ] || { cp "$from/$1.h5" "$to/.$1.tmp" && mv -f "$to/.$1.tmp" "$to/$1.h5"; }
}

unstage() {
    [ -n "${FEDHPC_SHARDS:-}" ] || return 0
    timeout 60 srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        rm -rf "$FEDHPC_SHARDS" || say "copies of shards may be left in $FEDHPC_SHARDS"
    unset FEDHPC_SHARDS
}

every_node_answers() {
    local nodes=$SLURM_JOB_NUM_NODES
    timeout 60 srun --overlap --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 true >/dev/null 2>&1
}

# Whether SLURM cancels the jobs that it preempts here, so that they are not queued again.
cancels_preempted() {
    scontrol show partition "${SLURM_JOB_PARTITION:-}" 2>/dev/null | grep -q '\<PreemptMode=CANCEL\>'
}

# What submits this job again, but for the options of sbatch that were not in the file.
same_command() {
    local command
    command=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p')
    echo "sbatch ${command:-with the same file and arguments}"
}

# A run that stopped early goes on in this same job, as soon as it may start again. A cancelled job stays cancelled, and
# where SLURM has queued it again already, there is nothing to do.
hold_for_restart() {
    if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" != RUNNING ]; then
        # Cancelled, or preempted under PreemptMode=CANCEL without GraceTime, where `scontrol requeue` does nothing.
        say "stopped early, and this job is being ended; to go on, with the same options: $(same_command)"
        exit 75
    fi
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$most_restarts" ]; then
        fail "stopped early, and restarted ${SLURM_RESTART_COUNT} times already" \
            "if a round takes longer than --time allows, raise it; submit again to go on"
    fi
    # SLURM ends this script before it comes to its end.
    unstage
    if scontrol requeue "$SLURM_JOB_ID"; then
        say "stopped early and queued again"
        # SLURM ends this script.
        sleep 60
    fi
    say "stopped early; the same command goes on from the last round"
    exit 75
}
