"""Passes TCP connections on from one address to another: the only way into SeaweedFS from other machines is its S3 port."""

import asyncio
import sys
from contextlib import suppress

CHUNK = 256 * 1024


async def relay(host: str, port: int, to_host: str, to_port: int) -> None:
    """Listen on host:port and pass every connection on to to_host:to_port, until cancelled."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_connection(to_host, to_port)
            await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))
            inner_writer.close()
        writer.close()

    server = await asyncio.start_server(connect, host, port)
    async with server:
        await server.serve_forever()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def main() -> None:
    """Run as `python -m infra.lab.relay HOST PORT TO_HOST TO_PORT`."""
    host, port, to_host, to_port = sys.argv[1:]
    with suppress(KeyboardInterrupt):
        asyncio.run(relay(host, int(port), to_host, int(to_port)))


if __name__ == "__main__":
    main()
