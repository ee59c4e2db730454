"""The manifest of a run: what was changed since it was signed is found, whoever wrote the digests anew."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from fpjax.core.errors import RequestError
from fpjax.core.store import read_json, write_json
from fpjax.run import pipeline
from fpjax.run.manifest import read_signing_key, remove_manifest, sign_manifest, verify, write_manifest

from .conftest import launch
from .test_config import config_of

PEM = serialization.Encoding.PEM


def write_key(path, key, *, password=None):
    """The private key as OpenSSL writes it, and the public one beside it."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption))
    public = path.with_suffix(".pub")
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return str(path), str(public)


@pytest.fixture
def keys(tmp_path):
    return write_key(tmp_path / "signer.pem", ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def signed(tmp_path, keys):
    """A directory like a run's, signed."""
    directory = tmp_path / "run"
    write_json(directory / "report.json", {"verdict": {"verdict": "leak"}})
    (directory / "samples").mkdir()
    (directory / "samples" / "count.npz").write_bytes(b"pictures")
    (directory / ".lock").write_text("1\n")
    digest = write_manifest(directory)
    sign_manifest(directory, read_signing_key(keys[0]))
    assert digest in verify(str(directory), keys[1])
    return directory


def forge_verdict(directory):
    content = read_json(directory / "report.json")
    content = {name: value for name, value in content.items() if name not in ("digest", "schema_version")}
    write_json(directory / "report.json", content | {"verdict": {"verdict": "below tolerance"}})


FORGERIES = {
    "a verdict with a digest of its own": (forge_verdict, r"1 changed \(report.json\)"),
    "pictures": (lambda d: (d / "samples" / "count.npz").write_bytes(b"other"), r"1 changed \(samples/count.npz\)"),
    "a file more": (lambda d: (d / "samples" / "new.npz").write_bytes(b""), r"1 added \(samples/new.npz\)"),
    "a file less": (lambda d: (d / "samples" / "count.npz").unlink(), r"1 gone \(samples/count.npz\)"),
    "the manifest too": (lambda d: (forge_verdict(d), write_manifest(d)), "a manifest that this key has not signed"),
    "no signature": (lambda d: remove_manifest(d), "No such file or directory"),
    "half a signature": (lambda d: os.truncate(d / "manifest.sig", 32), "a manifest that this key has not signed"),
    "a long signature": (lambda d: (d / "manifest.sig").write_bytes(b"x" * 65), "more than 64 bytes"),
    "a pipe": (lambda d: os.mkfifo(d / "samples" / "pipe"), "no plain file"),
    "a link out": (lambda d: (d / "samples" / "link").symlink_to("/dev/zero"), "no plain file"),
}


@pytest.mark.parametrize(("forge", "message"), FORGERIES.values(), ids=FORGERIES)
def test_what_was_changed_is_found(signed, keys, forge, message):
    forge(signed)
    with pytest.raises(RequestError, match=message):
        verify(str(signed), keys[1])


def test_keys_of_others_and_of_other_kinds_are_refused(tmp_path, signed, keys):
    other = write_key(tmp_path / "other.pem", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(RequestError, match="has not signed, expected one by SHA256:"):
        verify(str(signed), other[1])
    old = write_key(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048))
    with pytest.raises(
        RequestError, match="--sign=.*got a key of another kind.*fix: openssl genpkey -algorithm ed25519"
    ):
        read_signing_key(old[0])
    locked = write_key(tmp_path / "locked.pem", ed25519.Ed25519PrivateKey.generate(), password=b"secret")
    with pytest.raises(RequestError, match="under a passphrase"):
        read_signing_key(locked[0])
    os.mkfifo(tmp_path / "pipe")
    for given, message in (
        (keys[1], "without a private key"),
        (str(tmp_path / "none.pem"), "No such file"),
        (str(tmp_path / "pipe"), "no plain file"),
        ("/dev/zero", "no plain file"),
        (str(tmp_path), "no plain file"),
    ):
        with pytest.raises(RequestError, match=message):
            read_signing_key(given)
    with pytest.raises(RequestError, match="without a public key"):
        verify(str(signed), keys[0])
    with pytest.raises(RequestError, match="--key: got nothing"):
        verify(str(signed), "")


def test_without_the_extra_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(RequestError, match=r"pip install 'fpjax\[sign\]'"):
        read_signing_key(str(tmp_path / "key.pem"))


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the program openssl, version 3")
def test_openssl_makes_the_keys_and_checks_the_signature(tmp_path, signed):
    key, public = tmp_path / "o.pem", tmp_path / "o.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    sign_manifest(signed, read_signing_key(str(key)))
    verify(str(signed), str(public))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", signed / "manifest.json"]
    done = subprocess.run([*check, "-sigfile", signed / "manifest.sig"], capture_output=True, text=True)
    assert "Verified Successfully" in done.stdout


def test_a_run_is_signed_and_verified(smoke, environment, tmp_path, keys):
    workdir = tmp_path / "run"
    shutil.copytree(smoke[0], workdir)
    assert "manifest.json, SHA-256 " in smoke[1].stdout
    check = ("--verify", str(workdir), f"--key={keys[1]}")
    assert launch(environment, *check).returncode == 2
    done = launch(environment, f"--workdir={workdir}", "--stage=report", f"--sign={keys[0]}")
    assert done.returncode == 0, done.stderr
    assert "signed by SHA256:" in done.stdout
    files = json.loads((workdir / "manifest.json").read_text())["files"]
    there = {p.relative_to(workdir).as_posix() for p in workdir.rglob("*") if p.is_file()}
    assert there - set(files) == {".lock", "manifest.json", "manifest.sig"}
    verified = launch(environment, *check)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout.count("\n") == 1
    forge_verdict(workdir)
    refused = launch(environment, *check)
    assert refused.returncode == 2
    assert "1 changed (report.json)" in refused.stderr
    # Another run in it ends the signature, and says so.
    again = launch(environment, f"--workdir={workdir}", "--stage=report")
    assert "manifest.sig removed" in again.stderr
    assert not (workdir / "manifest.sig").exists()


def test_a_signature_needs_a_report(tmp_path, keys, capsys):
    for asked in ({"stages": ["data"]}, {"dry_run": True}):
        assert pipeline.main(config_of("smoke"), workdir=str(tmp_path / "run"), sign=keys[0], **asked) == 2
        assert "--sign: got " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_files_of_a_run_are_its_users_alone(smoke, environment, tmp_path):
    """Whoever writes them, and where they were open before."""
    for path in (smoke[0].parent / "run", *smoke[0].rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    workdir = tmp_path / "run"
    workdir.mkdir(mode=0o755)
    done = launch(environment, f"--workdir={workdir}", "--stage=data")
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(workdir.stat().st_mode) == 0o700


def test_compiled_programs_are_their_users_alone(tmp_path):
    """They hold no images, but the shapes of what a hospital works on."""
    (tmp_path / "fpjax").mkdir(mode=0o755)
    program = (
        "import jax; from fpjax.core.compilation import use_compilation_cache; from fpjax.core.private import private_process\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        "jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)\n"
        "with private_process(): use_compilation_cache(); jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(100))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run(
        ["sh", "-c", 'umask 022; exec "$@"', "sh", sys.executable, "-c", program], env=environment, check=True
    )
    files = [path for path in (tmp_path / "fpjax").rglob("*") if path.is_file()]
    assert files
    for path in (tmp_path / "fpjax", *(tmp_path / "fpjax").rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_crash_dumps_no_core_and_files_are_closed():
    program = (
        "import os, resource; from fpjax.core.private import private_process\n"
        "with private_process(): print(resource.getrlimit(resource.RLIMIT_CORE)[0], oct(os.umask(0o077)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0o77"]
