"""The jobs in deploy/: their command lines, schemas and numbers, and what the scripts do when a machine is taken away.

No cloud is asked: `gcloud`, `srun` and the like are stubs that note what they are told and end as the test says.
"""

import contextlib
import copy
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from pydantic import ValidationError

from jaxgpt.convert.errors import InputError
from jaxgpt.convert.exit_codes import ExitCode
from jaxgpt.training.command import read_command
from jaxgpt.training.settings import Settings
from jaxgpt.training.signals import SIGNALS

DEPLOY = ROOT / "deploy"
FILES = {path.name: path.read_text("utf-8") for path in sorted(DEPLOY.iterdir())}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXAMPLE = {"BUCKET": "some-bucket", "IMAGE": "registry/jaxgpt:1", "PROJECT": "some-project"}
"""Values for what the user fills in."""

LASTING = {ExitCode.FAILED, ExitCode.MISTAKE, ExitCode.FAULT}
ABORTED = 128 + signal.SIGABRT
"""How JAX ends a process that has lost the others."""
"""Exit codes after which the same command line would end in the same way."""


# what there is


def header(name: str) -> str:
    """The comment at the top of a file, without its marks."""
    lines = FILES[name].removeprefix("#!/usr/bin/env bash\n").splitlines()
    return "\n".join(line[2:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def usage(name: str, beginning: str) -> list[str]:
    """The arguments in the command of a file's header that begins so."""
    [command] = re.findall(rf"{beginning}(.*)", header(name))
    return shlex.split(command)


def fill(text: str) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: EXAMPLE[found[1]], text)


JOB_SET = yaml.safe_load(fill(FILES["gke-jobset.yaml"]))


def job_set() -> dict:
    return copy.deepcopy(JOB_SET)


def sky(name: str) -> dict:
    return yaml.safe_load(FILES[name])


SKY = [name for name in FILES if name.startswith("skypilot")]


def variable(name: str, script: str = "tpu-vm.sh") -> str:
    """What a script gives a variable: a word, a string in single quotes, or the default of the user's."""
    [word, quoted] = re.search(rf"(?m)(?:^| ){name}=(?:\$\{{{name}:-([^}}]+)\}}|'([^']+)')", FILES[script]).groups()
    return word or quoted


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    lines = [line for line in FILES["Dockerfile"].splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def instruction(name: str) -> str:
    [argument] = [argument for found, argument in dockerfile() if found == name]
    return argument


def parsed(flags: list[str]) -> Settings:
    """The flags as the program reads them; one that it doesn't know ends the test."""
    try:
        return read_command(flags)
    except InputError as error:
        pytest.fail(f"the program doesn't take {shlex.join(flags)}: {error}")


# stubs

STUB = """#!{python} -ISE
import json, os, sys
home = {home!r}
name, told = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(home + "/told.jsonl", "a") as log:
    log.write(json.dumps([name, *told]) + "\\n")
def following(what):
    with open(home + "/plan.json") as file:
        plan = json.load(file)
    following = plan[what].pop(0) if plan.get(what) else 0
    with open(home + "/plan.json", "w") as file:
        json.dump(plan, file)
    return following
def state(new=None):
    if new is not None:
        with open(home + "/state", "w") as file:
            file.write(new)
    return open(home + "/state").read() if os.path.exists(home + "/state") else ""
{body}
"""

GCLOUD = """
verb = told[3]
if verb == "describe":
    print(state())
    sys.exit(not state())
if verb == "create":
    code = following("create")
    print({1: "There is no more capacity in the zone", 3: "PERMISSION_DENIED"}.get(code, ""), file=sys.stderr)
    sys.exit(code or state("READY") and 0)
if verb == "delete":
    sys.exit(state("") and 0)
assert state() == "READY", state()
if verb == "scp":
    code = following("scp")
    sys.exit(code or os.spawnlp(os.P_WAIT, "cp", "cp", told[4], home))
if verb == "ssh":
    [command] = [flag.removeprefix("--command=") for flag in told if flag.startswith("--command=")]
    command = " ".join(command.split(" "))  # as gcloud and ssh do
    os.execlp("bash", "bash", "-c", command)
"""

PYTHON = """
end = following("train")
if isinstance(end, list):  # taken away meanwhile
    state(end[1])
    end = end[0]
sys.exit(end)
"""


class Machine:
    """A home folder with stubs, which a script of deploy/ is run on."""

    def __init__(self, home: Path):
        self.home = home
        self.bin = home / "stubs"
        self.bin.mkdir(parents=True)
        for name in ("curl", "sudo", "gcsfuse", "srun", "scontrol"):
            self.stub(name, f"sys.exit(following({name!r}))")
        for name in ("sleep", "mountpoint"):
            (self.bin / name).symlink_to("/bin/false" if name == "mountpoint" else "/bin/true")
        self.stub("gcloud", GCLOUD)
        self.stub("python", PYTHON, home / "venv" / "bin")
        self.stub("uv", "", home / ".local" / "bin")

    def stub(self, name: str, body: str, folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STUB.format(python=sys.executable, home=str(self.home), body=body))
        path.chmod(0o755)

    def env(self, **env: str) -> dict[str, str]:
        return {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.home), **env}

    def run(self, *command: str | Path, plan: dict | None = None, **env: str) -> subprocess.CompletedProcess:
        (self.home / "plan.json").write_text(json.dumps(plan or {}))
        return subprocess.run(
            [*map(str, command)], cwd=self.home, env=self.env(**env), capture_output=True, text=True, timeout=60
        )

    def told(self, name: str) -> list[list[str]]:
        """The arguments of each call of a stub, in order."""
        path = self.home / "told.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call[1:] for call in calls if call[0] == name]

    def verbs(self) -> list[str]:
        """What gcloud was to do to the machine; asking how it is, is left out."""
        return [call[3] for call in self.told("gcloud") if call[3] != "describe"]

    def trained(self) -> list[list[str]]:
        """The flags of each `python -m train`."""
        calls = self.told("python")
        assert all(call[:2] == ["-m", "train"] for call in calls)
        return [call[2:] for call in calls]


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path / "home")


TPU_FLAGS = usage("tpu-vm.sh", "deploy/tpu-vm.sh ")
MADE = ["create", "scp", "ssh", "ssh"]
"""A new machine, the package on it, set up, and the run."""

AGAIN = MADE[1:]
"""The same on a machine that is still there."""


def tpu_vm(machine: Machine, *flags: str, **plan: list) -> subprocess.CompletedProcess:
    return machine.run(DEPLOY / "tpu-vm.sh", *(flags or TPU_FLAGS), plan=plan, WAIT="1", **EXAMPLE)


# a TPU VM


def test_a_tpu_vm_is_made_anew_after_each_preemption_until_the_run_is_done(machine):
    gone = [255, "PREEMPTED"]
    done = tpu_vm(machine, train=[[ExitCode.STOPPED, "PREEMPTED"], gone, [ExitCode.FAILED, "TERMINATED"], 0])
    assert done.returncode == 0, done.stderr
    assert machine.verbs() == [*MADE, "delete"] * 4
    assert len(machine.trained()) == 4
    assert {tuple(flags) for flags in machine.trained()} == {tuple(machine.trained()[0])}


def test_a_run_that_stopped_on_a_tpu_vm_that_is_still_there_goes_on_there(machine):
    done = tpu_vm(machine, train=[ExitCode.STOPPED, 255, ExitCode.STOPPED, 0])
    assert done.returncode == 0, done.stderr
    assert machine.verbs() == [*MADE, *AGAIN * 3, "delete"]


@pytest.mark.parametrize("code", sorted(LASTING))
def test_a_mistake_on_a_tpu_vm_is_not_tried_again(machine, code):
    done = tpu_vm(machine, train=[code, 0])
    assert done.returncode == code
    assert machine.verbs() == MADE
    assert "still there" in done.stderr


def test_a_failure_of_gcloud_is_not_taken_for_one_of_the_program(machine):
    """Its exit codes are 1 and 2, too; after some in a row without a preemption it is given up."""
    done = tpu_vm(machine, scp=[1, 1])
    assert done.returncode == 0, done.stderr
    assert machine.verbs() == ["create", "scp", "scp", *AGAIN, "delete"]
    (machine.home / "told.jsonl").unlink()
    done = tpu_vm(machine, scp=[1] * 99)
    assert done.returncode == 1
    assert machine.verbs() == ["create", *["scp"] * 5]


def test_a_tpu_vm_that_is_not_to_be_had_is_asked_for_again(machine):
    done = tpu_vm(machine, create=[1, 1, 0])
    assert done.returncode == 0, done.stderr
    assert machine.verbs() == ["create", "create", *MADE, "delete"]


def test_a_tpu_vm_that_will_never_be_had_is_asked_for_once(machine):
    done = tpu_vm(machine, create=[3, 0])
    assert done.returncode == 2
    assert "PERMISSION_DENIED" in done.stderr
    assert machine.verbs() == ["create"]


def test_what_an_earlier_call_left_of_a_tpu_vm_is_used_if_it_can_be_and_else_deleted(machine):
    (machine.home / "state").write_text("READY")
    assert tpu_vm(machine).returncode == 0
    assert machine.verbs() == [*AGAIN, "delete"]
    (machine.home / "told.jsonl").unlink()
    (machine.home / "state").write_text("PREEMPTED")
    assert tpu_vm(machine).returncode == 0
    assert machine.verbs() == ["delete", *MADE, "delete"]


def test_flags_reach_the_program_on_a_tpu_vm_as_they_were_written(machine):
    odd = [r"--freeze=regex:blocks\.1\d\..*|ln_f", '--prompt=it\'s  $HOME\n&& `ls` "*"', "--lr-scale", "a b=2.0"]
    assert tpu_vm(machine, *odd).returncode == 0
    [flags] = machine.trained()
    assert flags[1:5] == odd
    assert parsed(flags).lr_scale == ("a b=2.0",)


def test_every_host_of_a_tpu_vm_is_told_the_same(machine):
    tpu_vm(machine)
    for call in machine.told("gcloud"):
        assert {f"--project={EXAMPLE['PROJECT']}", "--zone=" + variable("ZONE"), "--quiet"} <= {*call}
        assert ("--worker=all" in call) == (call[3] in ("ssh", "scp"))
    [mount] = machine.told("gcsfuse")
    assert mount[-2:] == [EXAMPLE["BUCKET"], "bucket"]
    [out] = {parsed(flags).out for flags in machine.trained()}
    assert out.parts[0] == "bucket"


def test_the_package_is_sent_whole_to_a_tpu_vm(machine):
    tpu_vm(machine)
    sent = machine.home / "source"
    for floor in PACKAGES:
        ours = {path.relative_to(ROOT) for path in (ROOT / floor).rglob("*.py")}
        assert ours == {path.relative_to(sent) for path in (sent / floor).rglob("*.py")}
    [_, install] = machine.told("uv")
    assert install[:2] == ["pip", "install"]
    assert install[-1].startswith("./source[")


def test_a_run_that_a_broken_connection_left_saves_before_the_next_begins(machine):
    """gcloud connects again by itself, and would start a second run beside the first."""
    saving = "import signal, time\ndef save(*_):\n    time.sleep(0.3)\n    log('saved')\n    sys.exit(75)\n"
    log = "def log(what):\n    with open(home + '/log', 'a') as file:\n        file.write(what + '\\n')\n"
    first = "\nif told[2] == 'first':\n    signal.signal(signal.SIGTERM, save)\n    log('began')\n    time.sleep(30)\n"
    machine.stub("python", log + saving + first + "log('next')", machine.home / "venv" / "bin")
    train = ["bash", "-c", variable("TRAIN"), "train"]
    with subprocess.Popen([*train, "first"], env=machine.env(), cwd=machine.home) as left:
        deadline = time.monotonic() + 20
        while not (machine.home / "log").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert machine.run(*train, "next").returncode == 0
        assert left.wait() == ExitCode.STOPPED
    assert (machine.home / "log").read_text().split() == ["began", "saved", "next"]


@pytest.mark.parametrize("missing", ["PROJECT", "BUCKET"])
def test_what_a_tpu_vm_needs_to_know_is_said(machine, missing):
    env = {name: value for name, value in EXAMPLE.items() if name != missing}
    done = machine.run(DEPLOY / "tpu-vm.sh", **env)
    assert done.returncode == 2
    assert re.search(rf"{missing} .*\(needed\)", done.stderr)
    assert not machine.told("gcloud")
    told = machine.run(DEPLOY / "tpu-vm.sh", "--help")
    assert (told.returncode, told.stdout) == (0, done.stderr)
    assert {*re.findall(r"(\w+)=\$\{\1:-", FILES["tpu-vm.sh"])} <= {*re.findall(r"\b[A-Z]+\b", told.stdout)}


# Slurm

SBATCH_FLAGS = usage("slurm.sbatch", "sbatch deploy/slurm.sbatch ")


def sbatch() -> dict[str, str]:
    """The options in the script, by name."""
    lines = re.findall(r"(?m)^#SBATCH --(\S+)$", FILES["slurm.sbatch"])
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


@pytest.mark.parametrize("code", [0, ExitCode.STOPPED, ABORTED, ExitCode.DISK, *sorted(LASTING), 137])
def test_a_slurm_job_queues_itself_again_if_it_was_stopped_or_lost_others_and_only_then(machine, code):
    job = {"SLURM_JOB_ID": "4711", "VENV": "/some/venv"}
    done = machine.run("bash", DEPLOY / "slurm.sbatch", *SBATCH_FLAGS, plan={"srun": [code]}, **job)
    assert done.returncode == code
    assert machine.told("scontrol") == [["requeue", "4711"]] * (code in (ExitCode.STOPPED, ABORTED))
    [command] = machine.told("srun")
    assert command[command.index("-m") - 1] == "/some/venv/bin/python"


def test_a_slurm_job_that_was_cancelled_does_not_queue_itself_again(machine):
    """scancel and Slurm's own preemption signal the shell too; the time limit, as it is asked for here, does not."""
    machine.stub("srun", f"os.kill(os.getppid(), {signal.SIGTERM:d})\nsys.exit({ExitCode.STOPPED})")
    done = machine.run("bash", DEPLOY / "slurm.sbatch", SLURM_JOB_ID="4711")
    assert done.returncode == ExitCode.STOPPED
    assert not machine.told("scontrol")


def test_a_slurm_job_has_a_process_for_each_gpu_and_time_to_save(machine):
    options = sbatch()
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    name, _, seconds = options["signal"].partition("@")
    assert signal.Signals[f"SIG{name}"] in SIGNALS
    hours, minutes, rest = map(int, options["time"].split(":"))
    assert 60 <= int(seconds) < hours * 3600 + minutes * 60 + rest
    assert "requeue" in options


# GKE


@pytest.fixture(scope="module")
def schema() -> type:
    """JobSet's own; its imports take a second, which no process needs that only collects these tests."""
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    return JobsetV1alpha2JobSet


def test_the_job_set_has_the_fields_that_there_are_and_no_others(schema):
    ours = job_set()
    assert schema.from_dict(ours).to_dict() == ours
    assert (ours["apiVersion"], ours["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def places(node, path=()):
    """Where a mapping of the tree has a field that somebody may misspell."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(key, str) and path[-1:] not in FREE:
            yield (*path, key)
        yield from places(value, (*path, key))


FREE = {(name,) for name in ("annotations", "nodeSelector", "volumeAttributes", "limits")}


@pytest.mark.parametrize("path", [*places(job_set())], ids=lambda path: ".".join(map(str, path)))
def test_a_field_of_the_job_set_that_is_misspelt_would_be_seen(path, schema):
    broken = node = job_set()
    for key in path[:-1]:
        node = node[key]
    node[path[-1] + "s"] = node.pop(path[-1])
    with contextlib.suppress(ValidationError, TypeError, AttributeError):
        assert schema.from_dict(broken).to_dict() != broken


def pod_of(jobs: dict) -> dict:
    return jobs["template"]["spec"]["template"]["spec"]


def test_the_job_set_has_one_process_for_each_host_of_its_slice():
    text, (jobs,) = FILES["gke-jobset.yaml"], job_set()["spec"]["replicatedJobs"]
    job, pod = jobs["template"]["spec"], pod_of(jobs)
    [container] = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips, hosts = math.prod(map(int, topology.split("x"))), job["parallelism"]
    per_host = container["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == hosts
    assert hosts * per_host == chips
    assert (job["completionMode"], jobs["replicas"]) == ("Indexed", 1)
    # the pool of the header
    [pool] = re.findall(r"node-pools create v5e-(\d+)", text)
    assert int(pool) == chips
    assert f"--tpu-topology={topology} " in text
    assert f"--num-nodes={hosts}\n" in text
    assert re.search(r"--machine-type=ct5lp-hightpu-(\d+)t", text)[1] == str(per_host)
    assert f"{topology.replace('x', ' x ')} chips in {hosts} hosts" in header("gke-jobset.yaml")
    assert ("--spot" in text) == (pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true")


def test_the_job_set_fails_for_a_mistake_and_starts_again_for_all_else():
    spec = job_set()["spec"]
    [jobs] = spec["replicatedJobs"]
    job, pod = jobs["template"]["spec"], pod_of(jobs)
    [rule] = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert spec["failurePolicy"]["maxRestarts"] >= 10
    # a host that is taken away comes first: what its processes end with means nothing
    lost, mistake = job["podFailurePolicy"]["rules"]
    assert [(lost["action"], lost["onPodConditions"][0]["type"])] == [("Count", "DisruptionTarget")]
    assert mistake["action"] == "FailJob"
    assert mistake["onExitCodes"]["operator"] == "In"
    assert {*mistake["onExitCodes"]["values"]} == LASTING
    assert mistake["onExitCodes"]["containerName"] in [container["name"] for container in pod["containers"]]
    assert job["backoffLimit"] == 0, "the others would wait for the one that is started again"
    assert pod["restartPolicy"] == "Never", "as podFailurePolicy wants"
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_the_bucket_is_mounted_where_the_job_set_writes():
    [jobs] = job_set()["spec"]["replicatedJobs"]
    pod = pod_of(jobs)
    [volume], [container] = pod["volumes"], pod["containers"]
    [mount] = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == EXAMPLE["BUCKET"]
    assert parsed(container["args"]).out.is_relative_to(mount["mountPath"])
    assert jobs["template"]["spec"]["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    assert f"serviceaccount {pod['serviceAccountName']}\n" in header("gke-jobset.yaml")


# SkyPilot

SKY_FIELDS = {"name", "workdir", "num_nodes", "envs", "resources", "setup", "run"}
SKY_RESOURCES = {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"}


@pytest.mark.parametrize("name", SKY)
def test_a_sky_job_has_fields_that_there_are_and_goes_on_after_a_stop(name):
    task = sky(name)
    assert task.keys() <= SKY_FIELDS
    assert task["resources"].keys() <= SKY_RESOURCES
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [ExitCode.DISK, ExitCode.STOPPED, ABORTED]}
    for variable in task["envs"]:
        assert f"--env={variable}=" in header(name)


@pytest.mark.parametrize("name", SKY)
def test_a_sky_job_sets_its_machines_up_and_runs_a_process_on_each(name, machine):
    task, home = sky(name), machine.home
    nodes = task.get("num_nodes", 1)
    addresses = [f"10.0.0.{i + 2}" for i in range(nodes)]
    env = EXAMPLE | {"SKYPILOT_NODE_IPS": "\n".join(addresses), "SKYPILOT_NUM_NODES": str(nodes)}
    for rank in range(nodes):
        done = machine.run("bash", "-c", task["setup"], **env)
        assert done.returncode == 0, done.stderr
        done = machine.run(
            "bash", "-c", task["run"], plan={"train": [ExitCode.STOPPED]}, SKYPILOT_NODE_RANK=str(rank), **env
        )
        assert done.returncode == ExitCode.STOPPED, done.stderr
    assert [call[-2:] for call in machine.told("gcsfuse")] == [[EXAMPLE["BUCKET"], str(home / "bucket")]] * nodes
    runs = [parsed(flags) for flags in machine.trained()]
    assert all(run.out.is_relative_to(home / "bucket") for run in runs)
    if nodes > 1:
        assert {run.coordinator.rpartition(":")[0] for run in runs} == {addresses[0]}
        assert [(run.process, run.processes) for run in runs] == [(rank, nodes) for rank in range(nodes)]


def test_all_jobs_for_tpus_have_the_same_one():
    task = sky("skypilot-tpu.yaml")["resources"]
    assert task["accelerators"] == f"tpu-{variable('TYPE')}"
    assert task["accelerator_args"] == {"runtime_version": variable("VERSION")}
    [jobs] = job_set()["spec"]["replicatedJobs"]
    topology = pod_of(jobs)["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert variable("TYPE").endswith(f"-{math.prod(map(int, topology.split('x')))}")


# Docker

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PACKAGES = [pattern.removesuffix("*") for pattern in SETUPTOOLS["packages"]["find"]["include"]]
LINKED = [path.readlink().name for name in PACKAGES for path in (ROOT / name).iterdir() if path.is_symlink()]


def test_the_image_has_all_that_installing_needs_and_nothing_else():
    copied = {source for name, argument in dockerfile() if name == "COPY" for source in argument.split()[:-1]}
    installed = {*PACKAGES, *LINKED, SETUPTOOLS["package-dir"][""]}
    assert copied == {*installed, "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]}
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert not any(fnmatch(source, line) for line in ignored[2:] for source in copied if not line.startswith("!"))


def test_the_image_is_pinned_runs_as_no_root_and_leaves_signals_to_the_program():
    image, _, tag = instruction("FROM").partition(":")
    assert image == "python"
    version = re.match(r"(\d+)\.(\d+)\.\d+-", tag)
    assert (int(version[1]), int(version[2])) >= tuple(map(int, PROJECT["requires-python"][2:].split(".")))
    assert instruction("USER") not in ("root", "0")
    assert json.loads(instruction("ENTRYPOINT")) == ["python", "-m", "train"]  # the exec form is JSON
    assert isinstance(json.loads(instruction("CMD")), list)
    names = [name for name, _ in dockerfile()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


@pytest.mark.parametrize("name", [name for name in FILES if name != "README.md"])
def test_the_extras_that_are_installed_are_ours(name):
    found = re.findall(r"(?:source|\.)\[([^]]+)\]", FILES[name]) + re.findall(r"EXTRA(?:=| is )(\w+)", FILES[name])
    extras = {extra for several in found for extra in re.findall(r"\b[a-z]+", several)}
    assert extras <= PROJECT["optional-dependencies"].keys()


# all of them


def command_lines(machine: Machine) -> dict[str, list[str]]:
    """The flags of every `python -m train` in deploy/, by what starts it."""
    [jobs] = job_set()["spec"]["replicatedJobs"]
    found = {"gke-jobset.yaml": pod_of(jobs)["containers"][0]["args"]}
    found["Dockerfile, alone"] = json.loads(instruction("CMD"))
    found["Dockerfile, as its header says"] = usage("Dockerfile", "docker run .* jaxgpt ")
    for name in SKY:
        ranks = {"SKYPILOT_NODE_IPS": "10.0.0.2", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}
        machine.run("bash", "-c", sky(name)["run"], **EXAMPLE, **ranks)
        found[name] = machine.trained()[-1]
    tpu_vm(machine)
    found["tpu-vm.sh"] = machine.trained()[-1]
    machine.run("bash", DEPLOY / "slurm.sbatch", *SBATCH_FLAGS)
    [command] = machine.told("srun")
    found["slurm.sbatch"] = command[command.index("train") + 1 :]
    return found


def test_every_command_line_is_one_of_the_programs_and_resumes(machine):
    found = command_lines(machine)
    assert {name.split(",")[0] for name in found} == FILES.keys() - {"README.md"}
    for name, flags in found.items():
        settings = parsed(flags)
        assert settings.resume, name
        several = not name.startswith("Dockerfile")
        assert (settings.coordinator is not None) == several, f"{name}: whether there is one process or more"
        assert (settings.processes is None) == (settings.process is None) == (":" not in str(settings.coordinator))


def scripts() -> dict[str, str]:
    """All that a shell reads: files, and strings within files."""
    found = {name: text for name, text in FILES.items() if text.startswith("#!")}
    found |= {f"{name} {part}": sky(name)[part] for name in SKY for part in ("setup", "run")}
    found |= {f"tpu-vm.sh {name}": variable(name) for name in ("INSTALL", "TRAIN")}
    return found | {f"Dockerfile {i}": text for i, (name, text) in enumerate(dockerfile()) if name == "RUN"}


@pytest.mark.parametrize("name", scripts())
def test_shellcheck_has_nothing_to_say(name):
    command = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "-"]
    done = subprocess.run(command, input=scripts()[name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_checkpoint_is_renamed_in_one_operation():
    """In a bucket with a hierarchical namespace, by one and the same gcsfuse that knows of it (2.5.0 was the first)."""
    assert "--enable-hierarchical-namespace" in FILES["README.md"]
    assert "--uniform-bucket-level-access" in FILES["README.md"]
    versions = [re.findall(r"(?:GCSFUSE=|/download/v|gcsfuse_)(\d+\.\d+\.\d+)", FILES[name]) for name in FILES]
    [version] = {version for several in versions for version in several}
    assert tuple(map(int, version.split("."))) >= (2, 5, 0)


def test_the_readme_has_each_file_and_its_command():
    rows = re.findall(r"(?m)^\| [^|]+ \| `([^`]+)` \| `((?:[^`|]|\\\|)+)` \|$", FILES["README.md"])
    assert {name for name, _ in rows} == FILES.keys() - {"README.md"}
    for name, command in rows:
        assert f"deploy/{name}" in command
        stripped = re.sub(r"(export )?\b[A-Z]+=\S*…\S* ", "", command.split(" --")[0].replace("\\|", "|"))
        assert stripped in header(name), f"{name}: its header has another command than {command}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_and_its_lines_fit(name):
    assert len(FILES[name].splitlines()) <= 140
    assert all(len(line) <= 120 for line in FILES[name].splitlines() if not line.startswith("|"))
