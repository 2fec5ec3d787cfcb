"""The connection to Redis: opened with words for what is wrong, and a quick way to send raw commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from wire.logs import redact
from wire.redis_url import bad_url, check_url
from wire.settings import RedisSettings

# A connection idle for longer is tried with a PING first, so that one that a firewall forgot is noticed before its use.
HEALTH_CHECK_S = 30
# Bytes asked of the socket at once. redis-py's 65,536 are taken from the heap for each reading and shrunk to what came,
# which leaves a worker's heap in pieces: it grew by 3 bytes a frame, and does not with this (docs/performance.md).
READ_BYTES = 4096

REFUSES = "redis refuses writes"


class RedisAway(ConnectionError):
    """Redis does not answer, or does not let us in. The message never holds a password."""


def connect(settings: RedisSettings, default_url: str = "") -> redis.Redis:
    """A client that has just been answered by its server.

    `default_url` (the embedded Valkey) is used when `settings.url` is empty. Commands are not retried by redis-py:
    whoever sends them knows whether they may be sent twice. Raises RedisUrlError or RedisAway.
    """
    url = settings.url or default_url
    check_url(url)
    try:
        client = redis.Redis.from_url(
            url,
            protocol=2,  # one form of reply for all versions of redis-py and of the server
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            health_check_interval=HEALTH_CHECK_S,
            retry=Retry(NoBackoff(), 0),
            socket_read_size=READ_BYTES,
        )
    except (ValueError, TypeError):
        # The library's message may quote the very part of the URL that holds the password.
        raise bad_url(url, "its host, port or options cannot be understood") from None
    try:
        client.ping()
    except redis.AuthenticationError as error:
        client.close()
        raise RedisAway(
            f"{redact(url)} refused the user name or password of redis.url ({redact(str(error))})"
        ) from None
    except (redis.RedisError, OSError) as error:
        client.close()
        raise RedisAway(f"{redact(url)} does not answer: {redact(str(error))}") from None
    return client


def trouble_name(error: Exception) -> str:
    """What to call a failed write: who looks for a lost connection does not find a full memory."""
    return REFUSES if isinstance(error, redis.ResponseError) else "redis away"


class _Connection(Protocol):
    """What Link uses of redis-py's connection, which has no types for it."""

    def pack_commands(self, commands: Iterable[tuple[Any, ...]]) -> Any: ...
    def send_packed_command(self, command: Any) -> None: ...
    def read_response(self) -> Any: ...
    def disconnect(self) -> None: ...


class Link:
    """One connection, for raw commands: a single one costs 40 µs of CPU here, and 90 through a redis-py pipeline."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = redis.Redis(connection_pool=client.connection_pool, single_connection_client=True)
        self._connection = cast(_Connection, self._client.connection)
        # A blocking read must be over before the socket's time limit is.
        self._longest_wait_s = client.connection_pool.connection_kwargs.get("socket_timeout", 1.0) / 2

    def block_ms(self, wait_s: float) -> int:
        """The BLOCK of a reading command that shall wait about `wait_s`: never 0, which would wait for ever."""
        return max(1, int(min(wait_s, self._longest_wait_s) * 1000))

    def send(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send all commands in one write and return the raw replies; a refused command's reply is its ResponseError.

        Raises redis.RedisError or OSError when the connection is lost; then nobody knows which commands were done.
        """
        connection = self._connection
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            return [self._reply() for _ in commands]
        except BaseException:
            # Replies that are still on their way would answer the next commands.
            connection.disconnect()
            raise

    def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """As `send`, where no command may be refused: raises the first ResponseError."""
        replies = self.send(*commands)
        for reply in replies:
            if isinstance(reply, redis.ResponseError):
                raise reply
        return replies

    def one(self, *words: Any) -> Any:
        """The reply to one command, given word by word; raises its ResponseError, and as `send` does."""
        return self.ask(words)[0]

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ResponseError as error:
            return error

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
        self._client.close()
