// The words of the page in both languages, and the switch between them. The files of this folder
// that page.rs lists are one module: what is at the top level here is for the files behind it.

const WORDS = {
  en: {
    skip: "Skip to the content",
    nav: "For programs",
    health: "Health",
    traffic: "Traffic, last five minutes",
    tasks: "Tasks and the process",
    endings: "Last endings",
    endings_none: "No connection has ended yet.",
    endings_failures: "Failures only",
    endings_filter: "Search the last 1,000",
    endings_found: "{shown} shown, of {all} looked through.",
    connections: "Open connections",
    filter: "Filter",
    console: "Console",
    console_path: "WebSocket path",
    console_protocol: "Subprotocol, if any",
    console_text: "Message",
    console_file: "Send a file…",
    console_frames: "Frames of this console",
    story_frames: "What happens on this connection",
    connect: "Connect",
    close: "Close",
    send_text: "Send text",
    routes: "Routes",
    name: "Name",
    path: "Path",
    target: "Goes to",
    open: "Open",
    strangers:
      "Details are for admins: ask from an address in admin_from, by IP address, localhost or a name in server_names.",
    state_ok: "Serving",
    state_degraded: "Degraded",
    state_draining: "Shutting down",
    as_of: "as of {time}, up for {uptime}, version {version}",
    lost: "Contact lost at {time}. What is shown is old; trying again…",
    backend_ok: "ok",
    backend_failed: "failed",
    backend_untried: "not tried yet",
    since: "since {time}",
    redis: "Redis",
    redis_connected: "connected",
    redis_disconnected: "away",
    redis_embedded: "not needed: workers publish to the gateway itself",
    redis_disabled: "not needed: no route serves results",
    audio: "Audio folder",
    log: "Log",
    plain_ok: "Everything works.",
    plain_backend_failed:
      "What is behind “{route}” does not answer at the moment. The gateway keeps trying.",
    plain_backend_untried: "Nobody has used “{route}” yet.",
    plain_backend_ok: "“{route}” works.",
    plain_redis_connected: "Answers can arrive.",
    plain_redis_disconnected: "Answers cannot arrive at the moment. The gateway keeps trying.",
    plain_redis_embedded: "Answers can arrive.",
    plain_draining: "The gateway is restarting. Try again in a moment.",
    chart_open: "Open connections",
    chart_frames: "Frames a second",
    chart_bytes: "Bytes a second",
    chart_backend: "Bytes a second, backends",
    chart_lag: "Loop lag",
    chart_memory: "Memory",
    from_clients: "from clients",
    to_clients: "to clients",
    from_backends: "from backends",
    to_backends: "to backends",
    now: "now",
    highest: "highest {value}",
    chart_label: "{title}: {values}; highest {highest}, last five minutes",
    opened_total: "Opened since the start",
    waiting: "Waiting for a result",
    sending: "Being sent one",
    completed: "Tasks completed",
    failed: "Tasks failed",
    to_text: "Publish to text, p50 / p99",
    to_audio: "Publish to first audio, p50 / p99",
    files: "Open files",
    none_yet: "none yet",
    col_id: "Id",
    col_state: "State",
    col_client: "Client",
    col_task: "Task",
    col_backend: "Backend",
    col_from: "From client",
    col_to: "To client",
    col_idle: "Idle",
    col_opened: "Opened",
    connections_none: "No connection is open.",
    connections_no_match: "No connection matches the filter.",
    connections_some: "{shown} of {all} shown.",
    connections_all: "{all} open.",
    in_frames: "in {n} frames",
    story_open: "Open",
    ended: "Ended",
    ended_by: "Ended by",
    by_client: "the client",
    by_backend: "the backend",
    by_worker: "the worker",
    by_redis: "Redis",
    by_gateway: "the gateway",
    by_operator: "the operator",
    reason: "Reason",
    lasted: "Lasted",
    code_client: "Close code, client",
    code_backend: "Close code, backend",
    close_none: "no close frame",
    close_sent: "sent by it",
    close_received: "sent to it",
    story_waiting: "Nothing yet. What happens next appears here.",
    story_lost: "{n} lines were lost: this page was too slow.",
    code: "code",
    console_connecting: "Connecting…",
    console_is_open: "Open",
    console_is_open_as: "Open, subprotocol {protocol}",
    console_closed: "Closed by {who} with code {code} {reason}",
    console_failed: "Not opened, or cut off: no close frame came",
    console_bad: "Cannot connect: {why}",
    this_page: "this page",
    other_side: "the other side",
    binary: "binary, {size}",
    talk: "Try it",
    talk_say: "Say something",
    talk_send: "Send",
    talk_speak: "Speak",
    talk_done: "Done",
    talk_stop: "Stop",
    talk_hint:
      "Enter sends, Shift+Enter begins a new line. What you say is sent on /ws/input; the answer comes on /ws/output/ followed by the id of its task.",
    talk_answers: "Answers",
    talk_connecting: "Connecting…",
    talk_uploading: "Sending…",
    talk_waiting: "Waiting for the answer…",
    talk_answering: "Answering…",
    talk_reconnecting: "The connection was lost, trying again…",
    talk_asking: "Asking for the microphone…",
    talk_listening: "Listening… Press Done when you have finished.",
    talk_stopped: "Stopped.",
    talk_failed: "Failed: {why}.",
    talk_finished: "Done. {first}",
    talk_first: "First words after {time} s.",
    talk_spoken: "(spoken)",
    talk_you: "You: {words}",
    talk_more: "Further fields",
    talk_task: "task ",
    talk_audio: "Audio of the answer",
    talk_sound: "{time} s of sound",
    talk_unknown_sound: "a sound format that this browser does not know",
    mic_insecure:
      "Speaking needs https:// or localhost: browsers give no microphone to other pages.",
    mic_impossible: "Speaking is not possible: this browser cannot record.",
    NotAllowedError: "the microphone is not allowed for this page",
    NotFoundError: "there is no microphone",
    NotReadableError: "another program uses the microphone",
  },
  "zh-CN": {
    skip: "跳到正文",
    nav: "供程序使用",
    health: "健康状况",
    traffic: "流量（最近五分钟）",
    tasks: "任务与进程",
    endings: "最近结束的连接",
    endings_none: "还没有连接结束。",
    endings_failures: "只看异常",
    endings_filter: "搜索最近 1,000 个",
    endings_found: "查找了 {all} 个，显示 {shown} 个。",
    connections: "当前连接",
    filter: "筛选",
    console: "控制台",
    console_path: "WebSocket 路径",
    console_protocol: "子协议（可留空）",
    console_text: "消息",
    console_file: "发送文件…",
    console_frames: "控制台收发的帧",
    story_frames: "此连接上发生的事",
    connect: "连接",
    close: "关闭",
    send_text: "发送文本",
    routes: "路由",
    name: "名称",
    path: "路径",
    target: "去向",
    open: "连接数",
    strangers:
      "详细信息仅供管理员查看：请从 admin_from 中的地址访问，并使用 IP 地址、localhost 或 server_names 中的名称。",
    state_ok: "运行正常",
    state_degraded: "部分异常",
    state_draining: "正在关闭",
    as_of: "截至 {time}，已运行 {uptime}，版本 {version}",
    lost: "已于 {time} 失去联系。页面上是旧数据，正在重试……",
    backend_ok: "正常",
    backend_failed: "故障",
    backend_untried: "尚未使用",
    since: "自 {time} 起",
    redis: "Redis",
    redis_connected: "已连接",
    redis_disconnected: "连接不上",
    redis_embedded: "不需要：任务结果直接发布到网关",
    redis_disabled: "不需要：没有路由提供任务结果",
    audio: "音频目录",
    log: "日志",
    plain_ok: "一切正常。",
    plain_backend_failed: "“{route}”背后的服务暂时没有响应，网关会继续尝试。",
    plain_backend_untried: "还没有人使用过“{route}”。",
    plain_backend_ok: "“{route}”正常。",
    plain_redis_connected: "可以收到回答。",
    plain_redis_disconnected: "暂时收不到回答，网关会继续尝试。",
    plain_redis_embedded: "可以收到回答。",
    plain_draining: "网关正在重启，请稍后再试。",
    chart_open: "当前连接",
    chart_frames: "每秒帧数",
    chart_bytes: "每秒字节数",
    chart_backend: "每秒字节数（后端）",
    chart_lag: "循环延迟",
    chart_memory: "内存",
    from_clients: "来自客户端",
    to_clients: "发往客户端",
    from_backends: "来自后端",
    to_backends: "发往后端",
    now: "当前",
    highest: "最高 {value}",
    chart_label: "{title}：{values}；最近五分钟最高 {highest}",
    opened_total: "启动以来的连接",
    waiting: "等待结果",
    sending: "正在发送",
    completed: "已完成的任务",
    failed: "失败的任务",
    to_text: "发布到文本 p50 / p99",
    to_audio: "发布到首段音频 p50 / p99",
    files: "打开的文件",
    none_yet: "暂无",
    col_id: "编号",
    col_state: "状态",
    col_client: "客户端",
    col_task: "任务",
    col_backend: "后端",
    col_from: "来自客户端",
    col_to: "发往客户端",
    col_idle: "空闲",
    col_opened: "建立时间",
    connections_none: "当前没有连接。",
    connections_no_match: "没有符合筛选条件的连接。",
    connections_some: "共 {all} 个，显示 {shown} 个。",
    connections_all: "共 {all} 个连接。",
    in_frames: "共 {n} 帧",
    story_open: "连接中",
    ended: "结束时间",
    ended_by: "由谁结束",
    by_client: "客户端",
    by_backend: "后端",
    by_worker: "工作进程",
    by_redis: "Redis",
    by_gateway: "网关",
    by_operator: "运维人员",
    reason: "原因",
    lasted: "持续时间",
    code_client: "客户端关闭代码",
    code_backend: "后端关闭代码",
    close_none: "没有关闭帧",
    close_sent: "由它发送",
    close_received: "发送给它",
    story_waiting: "暂无内容。接下来发生的事会显示在这里。",
    story_lost: "丢失了 {n} 行：本页面处理得太慢。",
    code: "代码",
    console_connecting: "正在连接……",
    console_is_open: "已连接",
    console_is_open_as: "已连接，子协议 {protocol}",
    console_closed: "已由{who}关闭，代码 {code} {reason}",
    console_failed: "未能建立或被中断：没有收到关闭帧",
    console_bad: "无法连接：{why}",
    this_page: "本页面",
    other_side: "对方",
    binary: "二进制，{size}",
    talk: "试一试",
    talk_say: "说点什么",
    talk_send: "发送",
    talk_speak: "语音",
    talk_done: "说完了",
    talk_stop: "停止",
    talk_hint:
      "按 Enter 发送，Shift+Enter 换行。内容经 /ws/input 发送；回答来自 /ws/output/ 加任务编号。",
    talk_answers: "回答",
    talk_connecting: "正在连接……",
    talk_uploading: "正在发送……",
    talk_waiting: "正在等待回答……",
    talk_answering: "正在回答……",
    talk_reconnecting: "连接中断，正在重试……",
    talk_asking: "正在请求使用麦克风……",
    talk_listening: "正在听……说完后请按“说完了”。",
    talk_stopped: "已停止。",
    talk_failed: "失败：{why}。",
    talk_finished: "完成。{first}",
    talk_first: "{time} 秒后收到第一句。",
    talk_spoken: "（语音）",
    talk_you: "你：{words}",
    talk_more: "其他字段",
    talk_task: "任务 ",
    talk_audio: "回答的音频",
    talk_sound: "{time} 秒音频",
    talk_unknown_sound: "此浏览器不支持的音频格式",
    mic_insecure: "语音需要 https:// 或 localhost：浏览器不向其他页面提供麦克风。",
    mic_impossible: "无法使用语音：此浏览器不能录音。",
    NotAllowedError: "此页面未获准使用麦克风",
    NotFoundError: "没有麦克风",
    NotReadableError: "麦克风正被其他程序使用",
  },
};

/** Why connections end, in the languages that the gateway's own sentences are not written in. */
const REASONS = {
  "zh-CN": {
    done: "请求已全部答复，客户端关闭了连接",
    bad_request: "请求无法识别",
    header_timeout: "客户端没有及时发完请求头",
    tls_failed: "与客户端的 TLS 握手失败",
    bad_proxy_header: "连接开头的 PROXY 头缺失、无法识别或不应出现",
    refused: "连接数已达上限，网关拒绝了连接",
    origin_not_allowed: "发起连接的网页不在 allowed_origins 中",
    backend_unavailable: "没有可用的后端",
    backend_overloaded: "后端已满，不再接受连接",
    out_of_resources: "网关的文件描述符、端口或内存已用尽",
    client_closed: "客户端关闭了连接",
    backend_closed: "后端关闭了连接",
    client_left: "客户端没有等到完整的响应就断开了",
    response_cut: "后端的响应不完整",
    client_vanished: "客户端断开了 TCP 连接，没有发送关闭帧",
    backend_vanished: "后端断开了 TCP 连接，没有发送关闭帧",
    client_silent: "客户端在 ping_timeout 内没有回应 ping",
    backend_silent: "后端在 ping_timeout 内没有回应 ping",
    client_message_too_big: "客户端发送的消息过大",
    backend_message_too_big: "后端发送的消息超过 max_message",
    idle_timeout: "双方在空闲超时内都没有发送消息",
    client_too_slow: "客户端读取太慢，积压过多",
    client_stalled: "客户端在 write_timeout 内没有读取任何数据",
    backend_stalled: "后端在 write_timeout 内没有读取任何数据",
    delivered: "最终结果已送达",
    worker_failed: "工作进程报告任务失败，客户端已收到错误消息",
    malformed_result: "工作进程发布的结果无法解析",
    audio_missing: "结果已送达，但缺少音频",
    task_stopped: "任务已被停止",
    bad_task_id: "客户端请求的任务编号或位置无效",
    task_timeout: "在 output.timeout 内没有等到任务的结果",
    over_budget: "内存不足，而此连接占用最多",
    redis_away: "Redis 失联的时间超过了 redis.grace",
    audio_lost: "音频文件在发送过程中被改动，或无法继续读取",
    audio_stalled: "音频没有写完就停止增长，超过了 output.audio_stall",
    audio_too_large: "音频超过了 output.max_audio",
    protocol_fault: "客户端发送的帧不符合 WebSocket 协议",
    not_utf8: "客户端发送的文本消息不是 UTF-8",
    draining: "网关正在关闭，已请客户端重新连接",
    stopped: "网关停止时连接尚未结束",
  },
};

/** What the gateway wrote into the page. */
const initial = JSON.parse(document.getElementById("initial").textContent);

/** The language on the page: a key of WORDS. */
let language = storedLanguage() ?? document.documentElement.lang;

/** Called when the language has changed. */
const inOtherWords = [];

function storedLanguage() {
  try {
    const stored = localStorage.getItem("aivtuber-gateway-language");
    return stored in WORDS ? stored : null;
  } catch {
    return null; // storage is switched off
  }
}

/** A phrase in the language of the page, with its `{names}` replaced. */
function say(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Adds an element. Values from outside are only ever added as text. */
function put(parent, name, className = "", words = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = words;
  parent?.append(element);
  return element;
}

/** Changes a text only where it differs, so that screen readers and selections are left alone. */
function retext(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

function at(id) {
  return document.getElementById(id);
}

const number = (value, digits = 0) =>
  new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1023.95 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 ? 0 : 1;
  const format = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return `${new Intl.NumberFormat(language, format).format(value)} ${units[unit]}`;
}

function duration(seconds) {
  const parts = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const first = parts.findIndex(([length]) => seconds >= length);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .map(([length, unit], index) => {
      const whole = Math.floor((index === 0 ? seconds : seconds % parts[first][0]) / length);
      return `${whole} ${unit}`;
    })
    .join(" ");
}

/** A time of day, with this many digits of a second. */
function clock(time, digits = 0) {
  const format = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
  if (digits) format.fractionalSecondDigits = digits;
  return new Date(time).toLocaleTimeString(language, format);
}

/** A time of day, and the date if that is not today's. */
function moment(time) {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? clock(time) : `${date.toLocaleDateString(language)} ${clock(time)}`;
}

function applyLanguage() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-t]"))
    element.textContent = say(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]"))
    element.setAttribute("aria-label", say(element.dataset.tLabel));
  const other = at("language");
  other.textContent = language === "en" ? "中文" : "English";
  other.lang = language === "en" ? "zh-CN" : "en";
  inOtherWords.forEach((apply) => apply());
}

at("language").addEventListener("click", () => {
  language = language === "en" ? "zh-CN" : "en";
  try {
    localStorage.setItem("aivtuber-gateway-language", language);
  } catch {
    // It holds for this page only.
  }
  applyLanguage();
});
