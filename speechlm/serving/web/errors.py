"""Errors as the OpenAI interface words them."""

from typing import Any

from starlette.responses import JSONResponse

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}


class Refused(Exception):
    """A request that is not carried out.

    Args:
        status: of the answer.
        message: what was expected, what came, what to do.
        param: of the request that it is about.
    """

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


def body_of(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    return {
        "error": {"message": message, "type": KINDS.get(status, "server_error"), "param": param, "code": str(status)}
    }


def answer(refused: Refused) -> JSONResponse:
    """The response for an error."""
    again = {"Retry-After": "1"} if refused.status in (429, 503) else {}
    return JSONResponse(body_of(refused.status, refused.message, refused.param), refused.status, headers=again)
