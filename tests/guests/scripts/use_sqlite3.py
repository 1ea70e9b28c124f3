"""use_sqlite3.py DATABASE ROWS"""

import sqlite3
import sys

path, rows = sys.argv[1], int(sys.argv[2])
db = sqlite3.connect(path)
db.execute("create table t (id integer primary key, name text, score real)")
with db:
    db.executemany(
        "insert into t values (?, ?, ?)",
        ((i, f"name{i * 7919 % rows}", i / 7) for i in range(rows)),
    )
db.execute("create index by_name on t (name)")
print(db.execute("select count(*), min(name), max(name), round(sum(score), 3) from t").fetchone())
print(db.execute("select id from t where name = 'name42'").fetchall())
try:
    with db:
        db.execute("delete from t")
        raise RuntimeError("roll back")
except RuntimeError as error:
    print(error, db.execute("select count(*) from t").fetchone())
try:
    db.execute("insert into t values (0, 'twice', 0)")
except sqlite3.IntegrityError as error:
    print(error)
if path != ":memory:":
    db.close()
    db = sqlite3.connect(path)
print(db.execute("pragma integrity_check").fetchone())
print(
    db.execute(
        "select substr(name, 1, 5) s, count(*) from t group by s order by 2 desc, 1 limit 5"
    ).fetchall()
)
