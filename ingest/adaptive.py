"""The adaptive decode profile: asleep while nothing moves, and back at the last keyframe when something does.

Awake, every packet is decoded, and the pictures' pixels are looked at a few times a second. When they have been still
for a while and the packet sizes of that while can be told from those of motion, it falls asleep at the next keyframe.
Asleep, packets are held and their sizes watched; a keyframe is decoded, looked at and sent when its size is unusual or
max_quiet_s is over. A packet larger than usual makes it decode what it holds and look: if the pixels have changed, it
wakes, and the held pictures that are still worth sending are sent with their own times.
"""

from __future__ import annotations

from collections.abc import Iterator

from av.packet import Packet
from av.video.frame import PictureType
from av.video.stream import VideoStream

from ingest.decoder import Decoder
from ingest.frames import Delivery, Picture, Skipped
from ingest.gop import MAX_BYTES, HeldPackets
from ingest.settings import AdaptiveSettings
from ingest.sizes import SizeWatch, payload_bytes
from ingest.stillness import Stillness
from ingest.wakefulness import Wakefulness, WakeReason

# Ten seconds at 30 fps. Decoding as many quiet 1080p frames takes 0.3 to 0.5 s, so a live camera that wakes has caught
# up before its newest frame is too old to be detected.
MAX_HELD = 300
# Live: held pictures older than this at wake-up are not sent. They would reach the broker older than its maximum age
# (link.max_age_ms, by default the same) and be dropped there after the work of converting them.
SEND_HELD_S = 0.5
# Awake, the pixels are looked at twice a second: enough to tell seconds of stillness, and one look costs about as much
# as decoding a third of a frame.
LOOK_EVERY_S = 0.5
# Timestamps that go back, or ahead by more than a lost connection's worth, are another time line.
_LEAP_BACK_S, _LEAP_AHEAD_S = 1.0, 5.0
# RTSP cameras leave the first few packets without a timestamp, until they have sent a clock report.
_UNTIMED = 25
# A false alarm doubles the alarm level, up to threefold; a minute of two-second keyframes undoes one.
_MORE_CAUTION, _MOST_CAUTION, _LESS_CAUTION = 2.0, 3.0, 0.97
# With B frames each alarm decodes all that is held. Two false ones bring the caution to its most; what is still larger
# then, before the next keyframe, is worth waking for, and no look costs as much again.
_MOST_LOOKS = 2
# Movements in a row that only a keyframe's pixels showed: sizes that were silent three times tell nothing.
_SILENT = 3
# A stream found unfit gets another chance after this: light, bitrate or settings may have changed, and a keyframe that
# could not be decoded may have been a damaged one.
_UNFIT_FOR_S = 600.0


class Adaptive:
    """Decides, packet by packet, what of one stream is decoded. One thread uses it."""

    def __init__(
        self,
        decoder: Decoder,
        settings: AdaptiveSettings,
        wakefulness: Wakefulness,
        time_base_s: float,
        send_held_s: float = SEND_HELD_S,
    ) -> None:
        """`send_held_s`: how old a held picture may be and still be sent on waking (infinity for files)."""
        self._decoder = decoder
        self._settings = settings
        self._wakefulness = wakefulness
        self._time_base_s = time_base_s
        self._send_held_s = send_held_s
        self._sizes = SizeWatch()
        self._stillness = Stillness()
        self._held = HeldPackets(MAX_BYTES, MAX_HELD)
        self._asleep = False
        self._looked = 0  # held packets that the decoder has seen
        self._reorders = False  # it has B frames
        self._looks = 0  # since the keyframe, where it reorders
        self._now_s: float | None = None  # the newest time of the stream
        self._keyframe_s = 0.0  # of the newest keyframe
        self._since_keyframe = 0  # packets
        self._untimed = 0  # packets in a row
        self._moved_s = 0.0
        self._look_due_s = float("-inf")
        self._decoded_s = 0.0  # the newest keyframe decoded while asleep
        self._silent = 0
        self._unannounced = False  # it woke by pixels, and it is not known yet whether something really moves
        self._unfit, self._unfit_until_s = "", float("-inf")  # why it must not sleep, until when
        wakefulness.begins("awake", "begins")

    def handle(self, packet: Packet[VideoStream], captured_ns: int) -> Iterator[Delivery]:
        """One packet; yields what has become of it, or of earlier ones."""
        if packet.pts is None:
            yield from self._untimed_packet(packet, captured_ns)
            return
        self._untimed = 0
        time_s = packet.pts * self._time_base_s
        reordered = self._now_s is not None and time_s < self._now_s
        self._reorders |= reordered
        yield from self._pass_time(time_s)
        if packet.is_keyframe:
            self._keyframe_s, since, self._since_keyframe = time_s, self._since_keyframe, 0
            if self._asleep:
                yield from self._doze_over(packet, captured_ns)
            else:
                yield from self._watch_keyframe(packet, captured_ns, since)
            return
        self._since_keyframe += 1
        if self._asleep:
            yield from self._doze(packet, captured_ns, reordered)
            return
        if self._since_keyframe == MAX_HELD:
            self._stay(f"no keyframe among {MAX_HELD} packets, more than can be held")
        self._sizes.learn(payload_bytes(packet), reordered)
        yield from self._decode(packet, captured_ns)

    def _untimed_packet(self, packet: Packet[VideoStream], captured_ns: int) -> Iterator[Delivery]:
        if self._asleep:
            yield from self._wake("clock", "a packet without a timestamp")
        self._untimed += 1
        if self._untimed == _UNTIMED:
            self._stay("its packets carry no timestamps")
        yield from self._decoder.decode(packet, captured_ns)

    def interrupt(self) -> Iterator[Delivery]:
        """Count what is held and be awake: the stream ends, or others use the decoder."""
        if self._asleep:
            yield from self._settle()
            self._held.take()
            self._decoder.reset()
            self._asleep = False
            self._wakefulness.begins("awake", "interrupted")

    def _pass_time(self, time_s: float) -> Iterator[Delivery]:
        if self._now_s is None:
            self._now_s = self._moved_s = time_s
        step_s = time_s - self._now_s
        if -_LEAP_BACK_S <= step_s <= _LEAP_AHEAD_S:
            self._wakefulness.passed(max(0.0, step_s))
            self._now_s = max(self._now_s, time_s)
            return
        if self._asleep:
            yield from self._wake("clock", f"timestamps leapt by {step_s:.1f} s")
        self._now_s = self._moved_s = time_s
        self._look_due_s = self._unfit_until_s = float("-inf")

    # Awake

    def _decode(self, packet: Packet[VideoStream], captured_ns: int) -> Iterator[Delivery]:
        for delivery in self._decoder.decode(packet, captured_ns):
            if isinstance(delivery, Picture):
                self._look_at(delivery)
            yield delivery

    def _look_at(self, picture: Picture) -> None:
        time_s = picture.pts_s
        if time_s is None or time_s < self._look_due_s:
            return
        self._look_due_s = time_s + LOOK_EVERY_S
        if self._stillness.changed(picture.image, time_s):
            self._moved_s = time_s
            self._sizes.forget()
            if self._unannounced:
                self._unannounced = False
                self._silent += 1
                if self._silent >= _SILENT:
                    self._silent = 0
                    self._is_unfit(f"things moved {_SILENT} times and the packet sizes did not tell")

    def _watch_keyframe(self, packet: Packet[VideoStream], captured_ns: int, since: int) -> Iterator[Delivery]:
        if self._may_sleep(since):
            yield from self._decoder.flush()
            still_s = self._now - self._moved_s
            self._asleep = True
            self._unannounced = False
            self._decoded_s = float("-inf")
            self._wakefulness.slept(f"still for {still_s:.1f} s")
            yield from self._doze_over(packet, captured_ns)
            return
        self._sizes.keyframe(payload_bytes(packet))
        yield from self._decode(packet, captured_ns)

    def _may_sleep(self, since: int) -> bool:
        if self._now - self._moved_s < self._settings.quiet_s:
            self._wakefulness.moves()
            return False
        if self._now < self._unfit_until_s:
            self._stay(self._unfit)
        elif since >= MAX_HELD:
            self._stay(f"keyframes are {since + 1} packets apart, more than can be held ({MAX_HELD})")
        elif since == 0:
            self._stay("every packet is a keyframe")
        elif not self._sizes.learned:
            self._wakefulness.stays("awake", "learns the packet sizes of the quiet scene")
        elif (why := self._sizes.blindness) is not None:
            self._stay(why)
        else:
            return True
        return False

    def _is_unfit(self, why: str) -> None:
        self._unfit, self._unfit_until_s = why, self._now + _UNFIT_FOR_S

    def _stay(self, why: str) -> None:
        self._wakefulness.stays("always_awake", why)

    # Asleep

    def _doze_over(self, keyframe: Packet[VideoStream], captured_ns: int) -> Iterator[Delivery]:
        """A keyframe comes: what was held before is not needed any more."""
        yield from self._settle()
        if self._looked:
            self._decoder.reset()
        self._looked = self._looks = 0
        self._sizes.caution = max(1.0, self._sizes.caution * _LESS_CAUTION)
        unusual = self._sizes.keyframe(payload_bytes(keyframe))
        self._held.add(keyframe, captured_ns, counted=keyframe.is_discard)
        if not len(self._held):
            yield from self._wake("long_gop", f"a keyframe of {keyframe.size} bytes is more than can be held")
            yield from self._decode(keyframe, captured_ns)
            return
        if unusual or self._now - self._decoded_s >= self._settings.max_quiet_s:
            yield from self._show_keyframe(keyframe, captured_ns)

    def _show_keyframe(self, packet: Packet[VideoStream], captured_ns: int) -> Iterator[Delivery]:
        frame = self._decoder.look_alone(packet)
        if frame is None or frame.pict_type != PictureType.I:
            self._is_unfit("a keyframe cannot be decoded alone (intra refresh, or damage)")
            yield from self._wake("undecodable", self._unfit)
            return
        self._decoded_s = self._now
        picture = self._decoder.picture(frame, captured_ns)
        if self._held.settle():
            yield picture
        share = self._stillness.changed(picture.image, picture.pts_s or 0.0)
        if share:
            yield from self._wake("pixels", f"{share:.1%} of the picture changed between keyframes")
            self._unannounced = True

    def _doze(self, packet: Packet[VideoStream], captured_ns: int, reordered: bool) -> Iterator[Delivery]:
        if not len(self._held) or not self._held.fits(packet):
            yield from self._wake("long_gop", f"no keyframe among {len(self._held)} packets")
            yield from self._decode(packet, captured_ns)
            return
        # Shown before its keyframe, it refers to pictures that nobody decoded.
        leads = (packet.pts or 0) * self._time_base_s < self._keyframe_s
        if leads and not packet.is_discard:
            yield Skipped("asleep", 1)
        self._held.add(packet, captured_ns, counted=leads or packet.is_discard)
        size = payload_bytes(packet)
        score = self._sizes.score(size, reordered)
        times = self._sizes.times_usual(size, reordered)
        self._sizes.learn(size, reordered)
        yield from self._settle_old()
        if score >= 1:
            yield from self._alarm(times)

    def _alarm(self, times: float) -> Iterator[Delivery]:
        """A packet was larger than usual: do the pixels agree?"""
        packets = [each.packet for each in self._held]
        if self._reorders:
            if self._looks == _MOST_LOOKS:
                yield from self._wake("size", f"a packet {times:.1f} times the usual, the third since the keyframe")
                return
            self._looks += 1
            # The newest picture stays inside until later packets push it out, or all are decoded to the end.
            frame = self._decoder.look_through(packets)
        else:
            frame = self._decoder.look(packets[self._looked :])
            self._looked = len(packets)
        share = self._stillness.changed(frame, self._now) if frame else 0.0
        if share:
            self._silent = 0
            self._sizes.caution = max(1.0, self._sizes.caution / 2)
            yield from self._wake("size", f"a packet {times:.1f} times the usual, {share:.1%} of the picture changed")
            return
        self._wakefulness.false_alarm()
        self._sizes.caution = min(_MOST_CAUTION, self._sizes.caution * _MORE_CAUTION)

    def _wake(self, reason: WakeReason, why: str) -> Iterator[Delivery]:
        self._asleep = False
        self._moved_s = self._now
        self._looked = self._looks = 0
        self._sizes.forget()
        self._wakefulness.woke(reason, why)
        yield from self._settle_old()
        yield from self._decoder.replay(self._held.take())

    def _settle(self, before_pts: float = float("inf")) -> Iterator[Delivery]:
        if count := self._held.settle(before_pts):
            yield Skipped("asleep", count)

    def _settle_old(self) -> Iterator[Delivery]:
        """What is too old to be sent, should it wake now."""
        return self._settle((self._now - self._send_held_s) / self._time_base_s)

    @property
    def _now(self) -> float:
        assert self._now_s is not None  # the first packet set it
        return self._now_s
