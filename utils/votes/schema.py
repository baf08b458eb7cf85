"""The tables of the store of votes, and the migration of a store from before campaigns.

An item of the first version was named "draw 0, question 5", so that two rounds, two machines or
two classmates could use the same name for different pairs. An item is now the hash of its content.
"""

import sqlalchemy as sql
from sqlalchemy.schema import CreateTable

from utils.votes.pairs import Shown, item_of, pair_of

ONE_AT_A_TIME = 20_261  # PostgreSQL's advisory lock: a whole class may create the tables at once
FORMER = "before campaigns"  # the campaign of the votes that a migration found
DEMO = "demo"  # the source and the campaign of votes from the web demo
CLASS = "class"  # the source of votes from the class page
ACCEPTED, WAITING, REFUSED = "accepted", "waiting", "refused"
PROMPTS = " · prompts"  # ends the campaign of a class that votes on its own prompts
QUARANTINED = (DEMO, CLASS)  # sources whose visitors nobody has identified: their votes wait

METADATA = sql.MetaData()
VOTES = sql.Table(
    "votes",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True),  # the order of arrival
    sql.Column("key", sql.String(32), nullable=False, unique=True),
    sql.Column("item", sql.Text, nullable=False),
    sql.Column("question", sql.Text, nullable=False),
    sql.Column("answer_a", sql.Text, nullable=False),
    sql.Column("answer_b", sql.Text, nullable=False),
    sql.Column("choice", sql.String(4), nullable=False),
    sql.Column("annotator", sql.Text, nullable=False, index=True),
    sql.Column("model_a", sql.Text, nullable=False),
    sql.Column("model_b", sql.Text, nullable=False),
    sql.Column("seed", sql.BigInteger, nullable=False),
    sql.Column("source", sql.Text, nullable=False),
    sql.Column("voted_at", sql.String(40), nullable=False),
    sql.Column("swapped", sql.Boolean, nullable=False),
    sql.Column("withdrawn_at", sql.String(40)),  # null if the vote was not withdrawn
    sql.Column("campaign", sql.Text, nullable=False, server_default=""),
    sql.Column("status", sql.String(8), nullable=False, server_default=ACCEPTED),
)
_STANDING = sql.and_(VOTES.c.source == CLASS, VOTES.c.withdrawn_at.is_(None))
sql.Index("ix_votes_campaign", VOTES.c.campaign)
sql.Index(  # the class page: at most one vote per item and voter, whatever two requests do
    "one_vote_per_item_and_voter",
    VOTES.c.campaign,
    VOTES.c.annotator,
    VOTES.c.item,
    unique=True,
    sqlite_where=_STANDING,
    postgresql_where=_STANDING,
)
CAMPAIGNS = sql.Table(
    "campaigns",
    METADATA,
    sql.Column("name", sql.String(80), primary_key=True),
    sql.Column("made_at", sql.String(40), nullable=False),
)
PAIRS = sql.Table(
    "pairs",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True),  # the order in which they were added
    sql.Column("campaign", sql.String(80), sql.ForeignKey(CAMPAIGNS.c.name), nullable=False),
    sql.Column("item", sql.String(16), nullable=False),
    sql.Column("question", sql.Text, nullable=False),
    sql.Column("first", sql.Text, nullable=False),
    sql.Column("second", sql.Text, nullable=False),
    sql.Column("model_first", sql.Text, nullable=False),
    sql.Column("model_second", sql.Text, nullable=False),
    sql.UniqueConstraint("campaign", "item"),
)
VOTERS = sql.Table(
    "voters",  # of the class page
    METADATA,
    sql.Column("id", sql.String(32), primary_key=True),
    sql.Column("campaign", sql.String(80), nullable=False),
    sql.Column("name", sql.Text, nullable=False),
    sql.Column("name_key", sql.String(160), nullable=False),  # upper and lower case are one name
    sql.Column("joined_at", sql.String(40), nullable=False),
    sql.Column("free", sql.Boolean, nullable=False),  # True: another telephone may take the name
    sql.UniqueConstraint("campaign", "name_key"),
)


def create(connection: sql.Connection) -> None:
    """Create what is missing, and migrate an older table, in the transaction of `connection`.

    Several processes may do so at the same time: the first one works, the others wait.
    """
    if _complete(connection):
        return
    if connection.dialect.name == "postgresql":
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock(ONE_AT_A_TIME)))
    elif not connection.connection.dbapi_connection.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python begins none before CREATE or ALTER
    if _complete(connection):
        return
    former = sql.inspect(connection).has_table(VOTES.name)
    if former:
        _add_columns(connection)
    for table in METADATA.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
    for index in VOTES.indexes:
        connection.execute(sql.schema.CreateIndex(index, if_not_exists=True))
    if former:
        _rename_items(connection)


def _complete(connection: sql.Connection) -> bool:
    found = sql.inspect(connection)
    return all(found.has_table(table.name) for table in METADATA.tables.values())


def _add_columns(connection: sql.Connection) -> None:
    present = {column["name"] for column in sql.inspect(connection).get_columns(VOTES.name)}
    for column in (VOTES.c.campaign, VOTES.c.status):
        if column.name not in present:
            definition = sql.schema.CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE votes ADD COLUMN {definition}")


def _rename_items(connection: sql.Connection) -> None:
    """Give each former vote the item of its content, its campaign and its status."""
    names = ("item", "question", "answer_a", "answer_b", "model_a", "model_b", "swapped")
    columns = [VOTES.c.id, VOTES.c.source, *(VOTES.c[name] for name in names)]
    rows = connection.execute(sql.select(*columns)).mappings().all()
    changes = [
        {
            "this": row["id"],
            "item": item_of(pair_of(Shown(**{name: row[name] for name in names}))),
            "campaign": DEMO if row["source"] == DEMO else FORMER,
            "status": WAITING if row["source"] in QUARANTINED else ACCEPTED,
        }
        for row in rows
    ]
    if changes:
        connection.execute(sql.update(VOTES).where(VOTES.c.id == sql.bindparam("this")), changes)
