"""A backend for deepagents: `create_deep_agent(model, backend=KvmletBackend(box))`."""

import errno
import subprocess
from typing import Any

from deepagents.backends.protocol import ExecuteResponse, FileDownloadResponse, FileUploadResponse
from deepagents.backends.sandbox import BaseSandbox

import kvmlet

TIMEOUT_S, OUTPUT_MAX, FILE_MAX = 120, 1 << 20, 64 << 20
ERRORS = dict.fromkeys((errno.EACCES, errno.EROFS), "permission_denied")
ERRORS |= {errno.EISDIR: "is_directory", errno.ENOENT: "file_not_found"}
RUN: Any = {"shell": True, "text": True, "stderr": subprocess.STDOUT, "max_output": OUTPUT_MAX}


def reason_of(error: kvmlet.KvmletError) -> str:
    return ERRORS.get(getattr(error, "errno", 0), error.message)


class KvmletBackend(BaseSandbox):
    def __init__(self, box: kvmlet.Box) -> None:
        self.box = box

    @property
    def id(self) -> str:
        return f"kvmlet-{id(self.box)}"

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        try:
            done = self.box.run(command, timeout=timeout or TIMEOUT_S, **RUN)
        except kvmlet.KvmletError as error:
            return ExecuteResponse(str(error), exit_code=125)
        if done.exit_code is not None:
            return ExecuteResponse(done.stdout, done.exit_code)
        text = f"{done.stdout}\n[ended: {done.reason}]"
        return ExecuteResponse(text, done.shell_status, truncated=done.truncated)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        def put(path: str, content: bytes) -> FileUploadResponse:
            try:
                self.box.files.write(path, content, parents=True)
            except kvmlet.KvmletError as error:
                return FileUploadResponse(path, error=reason_of(error))
            return FileUploadResponse(path)

        return [put(*file) for file in files]

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        def get(path: str) -> FileDownloadResponse:
            try:
                return FileDownloadResponse(path, self.box.files.read(path, limit_bytes=FILE_MAX))
            except kvmlet.KvmletError as error:
                return FileDownloadResponse(path, error=reason_of(error))

        return [get(path) for path in paths]
