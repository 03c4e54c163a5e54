"""What the bridge is measured against: two servers on the standard library alone.

`python -m tests.benchmarks.rivals bare` parses and answers as the bridge does,
and stores nothing: no server on this library can be faster by much.
`… rivals sqlite DIR` has the architecture of the original: a thread a
connection, SQLite, JSON files, all inside the request.
"""

import csv
import json
import pathlib
import sqlite3
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from data_pipeline.payloads import validation
from data_pipeline.payloads.store import SnapshotStore, TickerSnapshot


class Bare(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        try:
            gex = validation.gex_payload(json.loads(self.rfile.read(length)))
            self.keep(gex)
        except Exception as problem:
            return self.send_error(500, str(problem))
        self.send_response(202)
        self.send_header("Content-Type", "application/json")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(json.dumps({"status": "ok", "ticker": gex.ticker}).encode())

    def keep(self, gex):
        pass


class Sqlite(Bare):
    root: pathlib.Path
    lock = threading.Lock()
    store = SnapshotStore(TickerSnapshot)

    def keep(self, gex):
        with self.lock:
            state = self.store.get(gex.ticker).merged(gex.kind, gex.data, gex.endpoint, gex.received_at)
            self.store.put(state)
            documents = {s.ticker: s.document() for s in self.store.tickers()}
            self.replace("latest.json", json.dumps(documents, indent=2, sort_keys=True))
            with open(self.root / "spot_series.jsonl", "a") as series:
                series.write(json.dumps({"timestamp": gex.data["timestamp"], "spot": gex.data["spot"]}) + "\n")
            self.replace(f"{gex.ticker}.json", json.dumps(state.combined(), indent=2))
            with open(self.root / f"{gex.ticker}.csv", "w", newline="") as out:
                csv.writer(out).writerows(strike[:2] for strike in gex.data["strikes"])
            self.rows(gex, state)

    def replace(self, name, text):
        temporary = self.root / (name + ".tmp")
        temporary.write_text(text)
        temporary.replace(self.root / name)

    def rows(self, gex, state):
        con = sqlite3.connect(self.root / "gex_history.db")
        key = (gex.ticker, gex.data["timestamp"], gex.endpoint)
        with con:
            con.execute(
                "CREATE TABLE IF NOT EXISTS snapshots (ticker TEXT, timestamp INTEGER, endpoint TEXT, spot REAL,"
                " raw TEXT, PRIMARY KEY (ticker, timestamp, endpoint))"
            )
            con.execute(
                "CREATE TABLE IF NOT EXISTS strikes (ticker TEXT, timestamp INTEGER, endpoint TEXT, strike REAL,"
                " gamma REAL, vanna REAL, m1 REAL, m5 REAL, m10 REAL, m15 REAL, m30 REAL, history TEXT,"
                " PRIMARY KEY (ticker, timestamp, endpoint, strike))"
            )
            con.execute(
                "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?)",
                (*key, gex.data["spot"], json.dumps(gex.data, ensure_ascii=False)),
            )
            con.execute("DELETE FROM strikes WHERE ticker = ? AND timestamp = ? AND endpoint = ?", key)
            con.executemany(
                "INSERT INTO strikes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (*key, strike, gamma, vanna, *history, json.dumps(history))
                    for strike, gamma, vanna, history in gex.data["strikes"]
                ],
            )
        con.close()


class Server(ThreadingHTTPServer):
    request_queue_size = 1024  # with the library's 5, 32 clients wait seconds for their connection


def main():
    handler = {"bare": Bare, "sqlite": Sqlite}[sys.argv[1]]
    if handler is Sqlite:
        Sqlite.root = pathlib.Path(sys.argv[2])
        Sqlite.root.mkdir(parents=True, exist_ok=True)
    server = Server(("127.0.0.1", 0), handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
