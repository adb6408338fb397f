"""The simulated company: who works there, in which team, on which model, how often."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["service", "documents", "coding", "batch", "sync", "poller", "planner", "pair", "worker"]


class Model(NamedTuple):
    """A model as its provider names it."""

    provider: str
    name: str
    reasoning: float = 0.0
    """Share of the output tokens spent on reasoning."""


GPT = Model("openai", "gpt-5", reasoning=0.4)
GPT_MINI = Model("openai", "gpt-5-mini", reasoning=0.2)
GPT_4O_MINI = Model("openai", "gpt-4o-mini")
OPUS = Model("anthropic", "claude-opus-4-5")
SONNET = Model("anthropic", "claude-sonnet-4-5")
HAIKU = Model("anthropic", "claude-haiku-4-5")
GEMINI_PRO = Model("google", "gemini-2.5-pro")
FLASH = Model("google", "gemini-2.5-flash")


class Agent(NamedTuple):
    """One logical agent."""

    id: str
    team: str
    kind: Kind
    model: Model
    per_hour: float = 0.0
    """Mean runs per hour over the day; 0: runs only when another agent starts it, or by the clock."""
    tools: tuple[str, ...] = ()
    outcome: str | None = None
    mates: tuple[str, ...] = ()
    """Agents it works with: a planner's workers, the other half of a pair."""
    plain: bool = False
    """Its producer sends arguments, results and RFC 3339 times in plain, instead of hashes and seconds."""
    steady: bool = False
    """A poller that finds nothing new most of the time, instead of progress at every look."""


# fmt: off
COMPANY: tuple[Agent, ...] = (
    # Customers and staff write to these at any hour.
    Agent("support-triage", "support", "service", GPT_MINI, 6.0,
          ("get_customer", "get_tickets", "search_help"), "ticket_routed"),
    Agent("support-refunds", "support", "service", SONNET, 5.3,
          ("get_order", "get_payment", "refund_payment"), "refund_decided"),
    Agent("order-status", "support", "service", FLASH, 5.3,
          ("get_order", "track_parcel"), "ticket_resolved", plain=True),
    Agent("faq-chat", "support", "service", GPT_4O_MINI, 6.5,
          ("search_help",), "ticket_resolved"),
    Agent("returns-desk", "support", "service", HAIKU, 5.2,
          ("get_order", "create_label"), "return_booked"),
    Agent("invoice-bot", "finance", "service", GPT_MINI, 5.5,
          ("get_invoice", "match_payment"), "invoice_matched", plain=True),
    Agent("expense-check", "finance", "service", FLASH, 5.3,
          ("get_receipt", "get_policy"), "expense_checked"),
    Agent("lead-qualifier", "sales", "service", GPT_4O_MINI, 5.5,
          ("get_company", "search_crm"), "lead_scored"),
    Agent("quote-writer", "sales", "service", SONNET, 5.0,
          ("get_prices", "get_stock", "save_quote"), "quote_sent"),
    Agent("hr-helpdesk", "people", "service", HAIKU, 5.0,
          ("search_handbook", "get_balance"), "question_answered"),
    Agent("contract-review", "legal", "documents", OPUS, 22.0,
          (), "contract_reviewed"),
    # Developers start these in working hours.
    Agent("code-reviewer", "engineering", "coding", SONNET, 0.7, outcome="review_posted"),
    Agent("bug-fixer", "engineering", "coding", OPUS, 0.5, outcome="pr_merged"),
    Agent("test-writer", "engineering", "coding", SONNET, 0.4,
          outcome="pr_merged", plain=True),
    Agent("dependency-updater", "platform", "coding", GPT, 0.3, outcome="pr_merged"),
    Agent("migration-helper", "platform", "coding", GEMINI_PRO, 0.3, outcome="pr_merged"),
    # The clock starts these.
    Agent("nightly-report", "finance", "batch", GPT_MINI, tools=("write_row",), outcome="report_written"),
    Agent("catalog-export", "data", "batch", FLASH,
          tools=("upload_item",), outcome="export_done", plain=True),
    Agent("newsletter", "marketing", "batch", GPT_4O_MINI, tools=("send_email",), outcome="newsletter_sent"),
    Agent("data-sync", "data", "sync", GPT_MINI, tools=("fetch_page", "upsert_rows"), outcome="table_synced"),
    Agent("crm-sync", "sales", "sync", FLASH,
          tools=("list_contacts", "update_contact"), outcome="table_synced", plain=True),
    # These wait for something to happen.
    Agent("deploy-watch", "platform", "poller", HAIKU, 0.35,
          ("get_deployment",), "deploy_confirmed", steady=True),
    Agent("parcel-watch", "support", "poller", FLASH, 0.3,
          ("get_parcel",), steady=True),
    Agent("import-watch", "data", "poller", GPT_4O_MINI, 0.3,
          ("get_import",), "import_done"),
    # These start other agents, or talk to them.
    Agent("research-planner", "research", "planner", GPT, 0.35,
          outcome="brief_delivered", mates=("research-worker", "web-reader")),
    Agent("campaign-planner", "marketing", "planner", SONNET, 0.25,
          outcome="campaign_drafted", mates=("copy-worker", "fact-checker")),
    Agent("incident-lead", "platform", "planner", GPT, 0.2,
          outcome="incident_explained", mates=("log-reader",)),
    # These are started by others.
    Agent("research-worker", "research", "worker", SONNET, tools=("search_papers", "read_page")),
    Agent("web-reader", "research", "worker", FLASH, tools=("search_web", "read_page"), plain=True),
    Agent("copy-worker", "marketing", "worker", HAIKU, tools=("get_product", "save_copy")),
    Agent("fact-checker", "marketing", "worker", GPT_MINI, tools=("search_web", "get_product")),
    Agent("log-reader", "platform", "worker", HAIKU, tools=("query_logs", "query_metrics")),
    Agent("article-writer", "marketing", "pair", SONNET, 0.25,
          ("save_draft",), "article_approved", mates=("article-editor",)),
    Agent("article-editor", "marketing", "worker", GPT, tools=("check_style",)),
    Agent("feature-dev", "engineering", "pair", SONNET, 0.25,
          ("apply_patch",), "feature_accepted", mates=("feature-qa",)),
    Agent("feature-qa", "engineering", "worker", GPT_MINI, tools=("run_checks",)),
)
# fmt: on
"""36 agents in 10 teams on 8 models of 3 providers."""
