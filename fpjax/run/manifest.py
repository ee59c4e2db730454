"""The manifest of a run: SHA-256 of every file in its directory, which a key can sign.

The digests inside the results protect against accidents: whoever edits a result can write its digest anew. Against
people there is the signature (Ed25519, RFC 8032) of the manifest: who has the public key sees whether a file was
changed, added or taken away since it was signed, and by whose key it was. It does not say that the run was honest, nor
that the signer looked at it.
"""

import base64
import hashlib
import importlib
from pathlib import Path
from typing import Any

from ..core.errors import RequestError, check
from ..core.files import is_temporary, open_plain, read_plain, write_bytes
from ..core.paths import local_path
from ..core.store import LOCK, read_json, write_json

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
_MAX_KEY = 10_000  # bytes of a key file


def _file_digest(path: Path) -> str:
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by its path in it, but for the lock and the manifest itself."""
    left_out = {directory / name for name in (LOCK, MANIFEST, SIGNATURE)}
    found = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return {
        path.relative_to(directory).as_posix(): _file_digest(path)
        for path in found
        if path not in left_out and not is_temporary(path)
    }


def remove_manifest(directory: Path) -> bool:
    """Before files change; whether there was a signature."""
    signed = (directory / SIGNATURE).exists()
    for name in (SIGNATURE, MANIFEST):
        (directory / name).unlink(missing_ok=True)
    return signed


def write_manifest(directory: Path) -> str:
    """Writes `manifest.json`; its own SHA-256."""
    write_json(directory / MANIFEST, {"files": _digests(directory)})
    return _file_digest(directory / MANIFEST)


def _library(module: str = "hazmat.primitives.serialization") -> Any:
    try:
        return importlib.import_module(f"cryptography.{module}")
    except ImportError:
        raise RequestError(
            "--sign, --verify: got no package cryptography, expected it for signatures; fix: pip install 'fpjax[sign]'"
        ) from None


def _read_key(flag: str, given: str, *, private: bool) -> Any:
    """A key of Ed25519 in a PEM file."""
    kind = "private" if private else "public"
    expected = f"a PEM file with an Ed25519 {kind} key"
    make = "openssl genpkey -algorithm ed25519 -out KEY" if private else "openssl pkey -in KEY -pubout -out PUB"
    serialization = _library()
    try:
        content = read_plain(local_path(flag, given), most=_MAX_KEY)
        load = serialization.load_pem_private_key if private else serialization.load_pem_public_key
        key = load(content, None) if private else load(content)
        kinds = _library("hazmat.primitives.asymmetric.ed25519")
        right = isinstance(key, kinds.Ed25519PrivateKey if private else kinds.Ed25519PublicKey)
        problem = "" if right else f"a key of another kind, {type(key).__name__}"
    except OSError as error:
        key, problem = None, error.strerror or "a file that cannot be read"
    except TypeError:
        key, problem = None, "a key under a passphrase: write it without (openssl pkey), for this session alone"
    except (ValueError, _library("exceptions").UnsupportedAlgorithm):
        key, problem = None, f"a file without a {kind} key"
    check(not problem, f"{flag}={given}", got=problem, expected=expected, fix=make)
    return key


def read_signing_key(given: str) -> Any:
    """The private key that `--sign` names.

    Raises:
      RequestError: the extra is not installed, or the file holds no such key.
    """
    return _read_key("--sign", given, private=True)


def _fingerprint(public: Any) -> str:
    """As `ssh-keygen -l` has it of the key's 32 bytes: SHA-256 in base64."""
    serialization = _library()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return f"SHA256:{base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip('=')}"


def sign_manifest(directory: Path, key: Any) -> str:
    """Writes `manifest.sig`, 64 bytes as `openssl pkeyutl -rawin` has them; the key's fingerprint."""
    write_bytes(directory / SIGNATURE, key.sign((directory / MANIFEST).read_bytes()))
    return _fingerprint(key.public_key())


def verify(directory: str, public: str) -> str:
    """Checks the signature, and that every file is as it was signed.

    Args:
      directory: a run's, as `--verify` has it.
      public: path of the public key, as `--key` has it.

    Returns:
      What was found, in a line.

    Raises:
      RequestError: it is no directory of a run, it was not signed by this key, or files were changed, added or removed.
    """
    check(
        bool(public),
        "--key",
        got="nothing",
        expected="the public key of whoever signed",
        fix="add --key=PUB: without it whoever edits a file can write the manifest anew",
    )
    key, place = _read_key("--key", public, private=False), local_path("--verify", directory)
    manifest, fix = place / MANIFEST, "ask whoever signed it for the directory as it was"
    try:
        signed, signature = read_plain(manifest, most=2**26), read_plain(place / SIGNATURE, most=64)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"--verify={directory}: got {getattr(error, 'strerror', None) or 'no path'}, expected {MANIFEST} and "
            f"{SIGNATURE} in the directory of a run; fix: sign it with --stage=report --sign=KEY"
        ) from error
    try:
        key.verify(signature, signed)
    except _library("exceptions").InvalidSignature:
        raise RequestError(
            f"--verify={directory}: got a manifest that this key has not signed, expected one by {_fingerprint(key)}; "
            f"fix: {fix}"
        ) from None
    content: Any = read_json(manifest).get("files")
    check(isinstance(content, dict), MANIFEST, got=type(content).__name__, expected="files by name", fix=fix)
    try:
        found = _digests(place)
    except OSError as error:
        raise RequestError(f"--verify={directory}: got {error.strerror}, expected plain files; fix: {fix}") from error
    changed = sorted(name for name in content.keys() & found.keys() if content[name] != found[name])
    added, gone = sorted(found.keys() - content.keys()), sorted(content.keys() - found.keys())
    told = "; ".join(
        f"{len(names):,} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for what, names in {"changed": changed, "added": added, "gone": gone}.items()
        if names
    )
    check(not told, f"--verify={directory}", got=told, expected=f"the {len(content):,} files as signed", fix=fix)
    return f"{len(content):,} files as they were signed by {_fingerprint(key)}; {MANIFEST} {_file_digest(manifest)}"
