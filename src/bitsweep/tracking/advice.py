"""What to do about an error of MLflow or its database: one cause, one hint."""

import locale

from bitsweep.errors import one_line
from bitsweep.tracking.address import DAMAGED, Address, elsewhere

#: What MLflow and SQLAlchemy say of addresses that they cannot read, or no longer take, such as a folder of files.
_NO_ADDRESS = (
    "filesystem tracking backend", "unsupported uri", "invalid url", "invalid sqlite url", "could not parse sqlalchemy",
    "invalid literal for int", "unity catalog", "databricks",
)  # fmt: skip


def explain(error: Exception, address: Address) -> str:
    """One line: the store, what to do, and in parentheses what was raised."""
    return f"{address.named}: {advice(error, address)} ({_reason(error, address)})"


def _reason(error: Exception, address: Address) -> str:
    """What was raised, or what caused it: MLflow wraps a failed connection four times, and each says all below it."""
    from mlflow.exceptions import MlflowException

    cause: BaseException = error
    inner = error.__cause__ or error.__context__ if isinstance(error, MlflowException) else None
    while inner is not None:
        cause = inner if isinstance(inner, OSError) else cause
        inner = inner.__cause__ or inner.__context__
    return address.without_password(one_line(cause))


def advice(error: Exception, address: Address) -> str:
    """What went wrong, and what to do."""
    text = f"{error} {error.__cause__ or ''}".lower()
    code = str(getattr(error, "error_code", ""))
    if isinstance(error, UnicodeError):
        return (
            f"the locale's encoding, {locale.getencoding()}, does not hold all characters; set PYTHONUTF8=1 and run "
            "the same command again: what was finished is kept"
        )
    if isinstance(error, ImportError) or "no module named" in text:
        return f"needs a package that is not installed, the driver of its database; install it, {elsewhere(address)}"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "its artifacts need a folder where there is a file; remove the file"
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename} cannot be written; make it writable, {elsewhere(address)}"
    if "readonly" in text or "read-only" in text or isinstance(error, PermissionError):
        return f"cannot be written; make it writable, {elsewhere(address)}"
    if any(sign in text for sign in _NO_ADDRESS):
        return (
            "is no address that MLflow takes; correct it, as in http://HOST:5000 or sqlite:////FOLDER/mlflow.db, "
            f"{elsewhere(address)}"
        )
    if "disk image is malformed" in text or "malformed database schema" in text:
        return f"{DAMAGED}, {elsewhere(address)}"
    if "database is locked" in text:
        return "is locked by another program; end that one, and run the same command again"
    if "out-of-date database schema" in text or "can't locate revision" in text:
        return f"was made by another version of MLflow; run: mlflow db upgrade {address.shown}, {elsewhere(address)}"
    if code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST") and ("name" in text or "key" in text or "length" in text):
        return "MLflow does not take a name or value; give the knob, class, curve or table another one"
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "401" in text or "403" in text or "password" in text:
        return "refuses this user; check name and password"
    if "response body" in text:
        return f"answers, but not as MLflow does; correct the address, {elsewhere(address)}"
    if address.database is None:
        return f"does not answer; start it, {elsewhere(address)}"
    return f"cannot be used; {elsewhere(address).removeprefix('or ')}"
