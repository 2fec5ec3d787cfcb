"""/metrics shows the ledgers and the stages, on loopback, whatever else holds the port."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from wire import metrics
from wire.ledger import CameraLedger
from wire.settings import MetricsSettings


@pytest.fixture
def server() -> Iterator[metrics.MetricsServer]:
    running = metrics.serve(MetricsSettings(ingest_port=0), "ingest")
    assert running is not None
    yield running
    running.close()


def scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_ledgers_are_exported_by_camera_and_cause(server: metrics.MetricsServer) -> None:
    ledger = CameraLedger("door")
    ledger.captured(5)
    ledger.dropped("stale", 2)
    ledger.dropped("static")
    stop = metrics.export_ledgers(lambda: [ledger.snapshot()])
    try:
        found = scrape(server.port)
        ledger.captured(1)
        later = scrape(server.port)
    finally:
        stop()
    assert found["sparsecam_frames_captured_total", (("camera", "door"),)] == 5
    assert found["sparsecam_frames_detected_total", (("camera", "door"),)] == 0
    assert found["sparsecam_frames_dropped_total", (("camera", "door"), ("cause", "stale"))] == 2
    assert found["sparsecam_frames_dropped_total", (("camera", "door"), ("cause", "static"))] == 1
    assert found["sparsecam_frames_in_flight", (("camera", "door"),)] == ledger.snapshot().in_flight - 1 == 2
    assert later["sparsecam_frames_captured_total", (("camera", "door"),)] == 6
    assert ("sparsecam_frames_captured_total", (("camera", "door"),)) not in scrape(server.port)


def test_stages_are_histograms_that_tell_2_ms_from_5_s(server: metrics.MetricsServer) -> None:
    def count(found: dict[tuple[str, tuple[tuple[str, str], ...]], float], bound: str) -> float:
        return found["sparsecam_stage_seconds_bucket", (("le", bound), ("stage", "inference"))]

    before = scrape(server.port)
    metrics.observe("inference", 0.0015)
    metrics.observe("inference", 4.0)
    after = scrape(server.port)
    assert count(after, "0.001") == count(before, "0.001")
    assert count(after, "0.002") - count(before, "0.002") == 1
    assert count(after, "5.0") - count(before, "5.0") == 2
    total = ("sparsecam_stage_seconds_sum", (("stage", "inference"),))
    assert after[total] - before[total] == pytest.approx(4.0015)


def test_the_process_and_its_build_are_shown(server: metrics.MetricsServer) -> None:
    found = scrape(server.port)
    assert found["process_resident_memory_bytes", ()] > 1e6
    assert any(name == "sparsecam_build_info" and ("role", "ingest") in labels for name, labels in found)


def test_it_listens_on_loopback_by_default(server: metrics.MetricsServer) -> None:
    assert server.host == "127.0.0.1"


def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        running = metrics.serve(MetricsSettings(sink_port=taken), "sink")
        assert running is not None
        try:
            assert running.port != taken
            assert scrape(running.port)
        finally:
            running.close()


def test_an_address_of_another_machine_is_refused_in_words() -> None:
    with pytest.raises(metrics.MetricsError, match=r"metrics\.host '192\.0\.2\.1'.*127\.0\.0\.1"):
        metrics.serve(MetricsSettings(host="192.0.2.1", sink_port=0), "sink")


def test_disabled_serves_nothing() -> None:
    assert metrics.serve(MetricsSettings(enabled=False), "broker") is None
