"""What the example appliance serves: orders that are checked before they are taken."""

from fastapi import FastAPI
from pydantic import BaseModel, Field

app = FastAPI(title="orders", docs_url=None, redoc_url=None)


class Order(BaseModel):
    """What somebody wants, and how many of it."""

    item: str = Field(min_length=1, max_length=40)
    count: int = Field(gt=0, le=100)


@app.get("/health")
def health() -> dict[str, str]:
    """That it runs."""
    return {"status": "ok"}


@app.post("/orders")
def order(wanted: Order) -> dict[str, str]:
    """Take an order."""
    return {"taken": f"{wanted.count} x {wanted.item}"}
