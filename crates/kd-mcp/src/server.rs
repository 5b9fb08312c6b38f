//! The protocol's side: which tools there are, and what a call comes to.

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::{ErrorData, ServerHandler};

use crate::Options;
use crate::tools::{Entry, TOOLS};
use crate::worker::Caller;

pub(crate) struct Server {
    caller: Caller,
    config: ServerConfig,
    allow_write: bool,
}

const INSTRUCTIONS: &str = "\
kdpool is a kernel debugger for finding who leaks Windows kernel pool. Every question stops the whole target machine; \
each answer's `target` says when it runs again by itself. Call `run` when you need no more answers for now: its \
connections drop and its watchdogs bark while it stands still. A hunt: pool_top, then leak_watch with the tag that \
grows, then verifier_log or symbol_near for the stacks. `complete` is false where an answer may lack something; \
`warnings` say what. Numbers that are typed are hexadecimal.";

impl Server {
    pub(crate) fn new(options: &Options, caller: Caller) -> Server {
        let seconds = options.lease.as_secs_f64();
        let lease = format!("{INSTRUCTIONS} The target stands still for at most {seconds} s after a question began.");
        let config = ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("kdpool", options.version))
            .with_instructions(lease);
        Server { caller, config, allow_write: options.allow_write }
    }

    fn tools(&self) -> impl Iterator<Item = &'static Entry> {
        let allow_write = self.allow_write;
        TOOLS.iter().filter(move |entry| allow_write || !entry.writes)
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        self.config.clone()
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.tools().find(|entry| entry.name == name).map(Entry::tool)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.tools().map(Entry::tool).collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(entry) = self.tools().find(|entry| entry.name == request.name) else {
            let known = TOOLS.iter().any(|entry| entry.name == request.name);
            let why = match known {
                true => "it can change the target; start the server with --allow-write",
                false => "there is no such tool",
            };
            return Err(ErrorData::invalid_params(format!("{}: {why}", request.name), None));
        };
        let ask = match (entry.ask)(request.arguments.unwrap_or_default()) {
            Ok(ask) => ask,
            // The one who asked can mend it, so it is an answer and no fault of the protocol.
            Err(bad) => return Ok(CallToolResult::error(vec![ContentBlock::text(bad.to_string())]).into()),
        };
        let result = match self.caller.ask(ask, context.ct.cancelled()).await {
            Ok(answer) => {
                let failed = answer.failed();
                let answer =
                    serde_json::to_value(answer).map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
                let mut result = CallToolResult::success(vec![ContentBlock::text(answer.to_string())]);
                result.structured_content = Some(answer);
                result.is_error = Some(failed);
                result
            }
            Err(why) => CallToolResult::error(vec![ContentBlock::text(why)]),
        };
        Ok(result.into())
    }
}
