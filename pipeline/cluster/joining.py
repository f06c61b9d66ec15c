"""Check that a Ray cluster answers at an address, before Ray tries for a quarter of an hour."""

import grpc  # type: ignore[import-untyped]
from ray._private.gcs_utils import create_gcs_channel
from ray._private.services import canonicalize_bootstrap_address

from schemas.errors import ClusterError

_PATIENCE_S = 10.0  # a cluster may be just starting
_CLIENT, _CLIENT_PORT = "ray://", 10001
_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_SILENT = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}


def require_answer(address: str, setting: str) -> None:
    """Ask whatever listens at `address` (any form that ray.init takes); `setting` names the source.

    Raises ClusterError if nothing answers within 10 seconds, if the server is not a cluster, or if
    it is one that asks for another token.
    Ray raises ConnectionError or ValueError for an address that it cannot read.
    """
    if address.startswith(_CLIENT):
        host = address.removeprefix(_CLIENT).partition("?")[0].rstrip("/")
        has_port = host.rpartition(":")[2].isdigit() and not host.endswith("]")
        place = host if has_port else f"{host}:{_CLIENT_PORT}"
        wrong = _SILENT  # a live client server of Ray may refuse a call that it does not know
    elif "://" in address or not (place := canonicalize_bootstrap_address(address) or ""):
        return
    else:
        wrong = _SILENT | {grpc.StatusCode.UNIMPLEMENTED}
    code = _answer(place)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        raise ClusterError(
            f"{setting} {address!r}: the cluster asks for its token; export RAY_AUTH_MODE=token, "
            "and have the token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
    if code in wrong:
        raise ClusterError(
            f"{setting} {address!r}: no Ray cluster answers at {place} within {_PATIENCE_S:g} s "
            f"({code.name}); check `ray status` there, host and port (the head's is 6379 by "
            f"default, that of {_CLIENT} {_CLIENT_PORT}), or leave the address out: then the "
            "program starts a Ray of its own"
        )


def _answer(place: str) -> grpc.StatusCode:
    """Ask the server at HOST:PORT whether a cluster lives there; return its status code."""
    with create_gcs_channel(place) as channel:
        try:  # a Ray message without fields is empty
            channel.unary_unary(_QUESTION)(b"", timeout=_PATIENCE_S, wait_for_ready=True)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK
