-- Routes the requests that the native rules of haproxy.cfg leave open, because their scope is not
-- canonical or their headers need a check. HAProxy loads this file once per thread, and with it
-- facts.lua, the services and instances that the proxy of this instance knows.
--
-- The action "lua.route" answers a request that it refuses. For any other request, it sets
--   txn.route     backend, service type and resolved scope, separated by spaces
--   txn.mints     true if a login gets a tagged token, with the tag in txn.tag
--   txn.alone     true if a foreign token validates itself
--   txn.elsewhere why a new server may have no network, escaped for JSON
-- and rewrites the path and the headers for the service or the peer. If this file fails, txn.route is
-- missing, and haproxy.cfg refuses the request.
--
-- The service "lua.instances" answers GET /scope: what this proxy knows.
--
-- The service "lua.validate" takes questions about tokens, and removes the roles that do not count here from
-- the answers of issuers that have a policy.
--
-- The service "lua.login" takes logins whose body may have a tagged token, as rescoping has. It moves the
-- tag from the body to X-Scope, and sends the request to this proxy again, by the socket facts.logins.

local facts = require("facts")
local json = require("json")
-- Sealing needs a library of its own (Debian's lua-luaossl), which other proxies do without.
local seal = facts.keys and require("seal")
if seal then
    seal.configure(facts.keys, facts.sealed_for)
end

-- The headers that may appear only once, as messages and as HAProxy spell them.
local SINGLE = { "X-Scope", "X-Auth-Token", "X-Subject-Token", "X-Service-Token" }
local SINGLE_LOWER = { "x-scope", "x-auth-token", "x-subject-token", "x-service-token" }
-- The mark in a header that a client has percent-encoded.
local ENCODED_MARK = facts.mark:gsub("!", "%%21")
-- How many resolved scopes are cached, and the longest key that is cached, in characters.
local KEPT_AT_MOST, LONGEST_KEPT = 1000, 1000
-- The longest body of a login, in bytes. Keystone takes 112 KiB (oslo.middleware's sizelimit.py).
local LONGEST_LOGIN = 1024 * 1024
local REASONS = {
    [400] = "Bad Request", [401] = "Unauthorized", [403] = "Forbidden", [404] = "Not Found",
    [413] = "Content Too Large", [503] = "Service Unavailable",
}
-- Headers of one connection (RFC 9110, section 7.6.1), and those that a body of another length changes.
local OF_CONNECTION = {
    "connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
}

-- keystonemiddleware reads identities from these headers, or writes them for its service
-- (auth_token/_request.py: user_token, _all_auth_headers, _SYSTEM_SCOPE_HEADER). No client needs one.
local FORGED = { ["x-storage-token"] = true, ["openstack-system-scope"] = true }
for _, name in ipairs({ "x-identity-status", "x-service-identity-status", "x-service-catalog",
                        "x-is-admin-project", "x-role", "x-user", "x-tenant", "x-tenant-id",
                        "x-tenant-name" }) do
    FORGED[name] = true
end
for _, prefix in ipairs({ "x-", "x-service-" }) do
    FORGED[prefix .. "roles"] = true
    for _, thing in ipairs({ "domain", "project", "project-domain", "user", "user-domain" }) do
        FORGED[prefix .. thing .. "-id"] = true
        FORGED[prefix .. thing .. "-name"] = true
    end
end

-- The roles that services' own policies trust with everything, or with what services tell each other.
-- oslo.policy ignores case (_checks.py: RoleCheck).
local OF_ADMINISTRATORS = { admin = true, service = true }

-- Ends the routing of a request with an error in OpenStack's format. The log names the issuer.
local function refuse(status, message, issuer)
    error({ status = status, message = message, issuer = issuer }, 0)
end

-- Untrusted text, truncated and escaped for a JSON string; invalid UTF-8 is left out.
local function shown(txn, text)
    return txn.c:json(text:sub(1, 200), "utf8ps")
end

-- The value of a header that appears at most once. HAProxy counts values from 0.
local function value_of(headers, name)
    local values = headers[name]
    return values and values[0]
end

local function is_tagged(token)
    return token ~= nil and token:find(facts.mark, 1, true) ~= nil
end

-- A token with its tag as it was issued. glanceclient percent-encodes X-Auth-Token and X-Service-Token
-- (common/http.py: encode_headers); a token itself has nothing to encode. A tag that does not decode stays
-- as it is, and is not a valid scope.
local function plain(txn, token)
    if token == nil or is_tagged(token) then
        return token
    end
    local first, last = token:find(ENCODED_MARK, 1, true)
    if first == nil then
        return token
    end
    local tag = token:sub(last + 1)
    return token:sub(1, first - 1) .. facts.mark .. (txn.c:url_dec(tag) or tag)
end

-- A token without its tag.
local function bare(token)
    return token:match("^[^!]*")
end

-- The scope after a token; "", which is not a scope, if the token ends before the mark.
local function tag_of(token)
    local mark = token:find(facts.mark, 1, true)
    if token:find("!", 1, true) < mark then
        return ""
    end
    return token:sub(mark + #facts.mark)
end

local function tag_if_any(token)
    return is_tagged(token) and tag_of(token) or nil
end

-- The pairs of a flat JSON object of plain strings, in their order, or nil. A string has no
-- backslash and no control character, so every quote delimits a string.
local function pairs_of(text)
    local inside = not text:find("[\0-\31\\]") and text:match("^ *{(.*)} *$")
    if not inside then
        return nil
    end
    local found, position, comma = {}, 1, not inside:match("^ *$")
    while comma do
        local service, instance, separator, after =
            inside:match('^ *"([^"]+)" *: *"([^"]+)" *(,?)()', position)
        if not service then
            return nil
        end
        found[#found + 1] = { service, instance }
        position, comma = after, separator == ","
    end
    if #found > 0 and position <= #inside then
        return nil
    end
    return found
end

-- Parses a scope. The error names the first fault, and the place that the text comes from.
local function read(txn, text, place)
    local found = pairs_of(text)
    if found == nil then
        refuse(400, "malformed scope \\u0027" .. shown(txn, text) .. "\\u0027 in " .. place
            .. ': write JSON such as {\\"image\\": \\"' .. facts.name .. '\\"}')
    end
    for _, pair in ipairs(found) do
        if not facts.types[pair[1]] then
            refuse(400, "unknown service type \\u0027" .. shown(txn, pair[1])
                .. "\\u0027 in scope; known: " .. facts.types_shown)
        end
    end
    local scope = {}
    for _, pair in ipairs(found) do
        if scope[pair[1]] then
            refuse(400, "a service type appears twice in the scope in " .. place)
        end
        scope[pair[1]] = pair[2]
    end
    for _, pair in ipairs(found) do
        if not facts.instances[pair[2]] then
            refuse(400, "unknown instance \\u0027" .. shown(txn, pair[2])
                .. "\\u0027 in scope; known: " .. facts.instances_shown)
        end
    end
    return scope
end

-- The canonical form of a scope: every service type, in alphabetical order, without spaces.
local function canonical(scope)
    local items = {}
    for index, service in ipairs(facts.order) do
        items[index] = '"' .. service .. '":"' .. scope[service] .. '"'
    end
    return "{" .. table.concat(items, ",") .. "}"
end

-- The canonical form of a scope, with this issuer.
local function issued(scope, issuer)
    return canonical(setmetatable({ identity = issuer }, { __index = scope }))
end

local function require_trust(issuer)
    if issuer ~= nil and facts.instances[issuer] == "untrusted" then
        refuse(401, facts.name .. " does not accept tokens that " .. issuer .. " issued", issuer)
    end
end

-- The JSON in a scoped URL. A text that does not decode, or that hides a NUL, stays as it is and is
-- not a valid scope.
local function decoded(txn, encoded)
    if not encoded:match("^[A-Za-z0-9_-]*$") or #encoded % 4 == 1 then
        return encoded
    end
    local text = txn.c:ub64dec(encoded)
    if text == nil or text:find("\0", 1, true) then
        return encoded
    end
    return text
end

local function service_at(path)
    return facts.paths[path:match("^/([^/]*)") or ""]
end

-- The encoded scope in a path, if there is one, and the rest of the path without its first slash.
local function split(path)
    return path:match("^/" .. facts.url_prefix .. "/([^/]*)/?(.*)$")
end

-- Takes the scope out of a path, and finds the service that the path leads to.
local function read_path(txn)
    local path = txn.f:path()
    local encoded, rest = split(path)
    if encoded then
        path = "/" .. rest
        txn.http:req_set_path(path)
        txn.http:req_set_header("X-Forwarded-Prefix", "/" .. facts.url_prefix .. "/" .. encoded)
    end
    local service = service_at(path)
    if service == nil then
        refuse(404, "the proxy of " .. facts.name .. " knows no service at this path; known: "
            .. facts.paths_shown)
    end
    return service, path, encoded and decoded(txn, encoded)
end

-- Merges the three carriers of a scope: the resolved scope, its canonical text, whether there is any
-- carrier, and the issuer that the tag, which comes from this place, names. Requests repeat themselves,
-- so results are cached.
local kept, kept_count = {}, 0

local function understand(txn, header, url, tag, place)
    local key = (header or "-") .. "\n" .. (url or "-") .. "\n" .. (tag or "-")
    local known = kept[key]
    if known then
        return known
    end
    local scopes = {
        header and read(txn, header, "X-Scope") or {},
        url and read(txn, url, "the URL") or {},
        tag and read(txn, tag, place) or {},
    }
    local scope = {}
    for _, service in ipairs(facts.order) do
        scope[service] = scopes[1][service] or scopes[2][service] or scopes[3][service] or facts.name
    end
    known = {
        scope = scope,
        text = canonical(scope),
        carried = (header or url or tag) ~= nil,
        tag_issuer = scopes[3].identity,
    }
    if #key <= LONGEST_KEPT then
        if kept_count == KEPT_AT_MOST then
            kept, kept_count = {}, 0
        end
        kept[key], kept_count = known, kept_count + 1
    end
    return known
end

-- A service's own token is valid only on the instance that issued it, and stays there.
local function keep_service_token(txn, token, issuer, target)
    if target ~= facts.name or issuer ~= facts.name then
        txn.http:req_del_header("X-Service-Token")
    elseif is_tagged(token) then
        txn.http:req_set_header("X-Service-Token", bare(token))
    end
end

-- Keystone knows its tokens without their tags. The issuer of a token answers questions about it. If the
-- caller's own token is from another instance, the subject validates itself, as keystone's policy allows
-- (rule:token_subject): no instance needs an account on another one.
local function to_keystone(txn, caller, caller_issuer, subject, subject_issuer)
    if subject_issuer then
        txn.http:req_set_header("X-Subject-Token", bare(subject))
        if caller and subject_issuer ~= caller_issuer then
            txn:set_var("txn.alone", true)
            caller = subject
        end
    end
    if is_tagged(caller) then
        txn.http:req_set_header("X-Auth-Token", bare(caller))
    end
end

-- The peer that sends this request: its certificate says so, or its address.
local function peer_of(txn)
    return txn:get_var("txn.peer") or facts.peers[txn.f:src()]
end

-- Answers a peer's question about a token that this proxy has sealed, or refuses it.
local function open_for_keystone(txn, path, caller, subject)
    local inside = seal.open(txn, subject)
    local asker = peer_of(txn)
    local asks = (txn.f:method() == "GET" or txn.f:method() == "HEAD") and path:match("^/[^/]+/v3/auth/tokens/?$")
    if not (inside and asker and asks) or caller ~= subject
        or not seal.may_validate(inside, asker, read(txn, inside.scope, "the seal")) then
        refuse(404, "This is not a recognized token.")
    end
    txn.http:req_set_header("X-Auth-Token", inside.token)
    txn.http:req_set_header("X-Subject-Token", inside.token)
    txn:set_var("txn.sealed", subject)
end

-- The token in one that this proxy has sealed, for a peer's request that its scope needs.
local function opened(txn, sealed, text, service, target)
    local inside = seal.open(txn, sealed)
    if inside == nil then
        refuse(401, "this sealed token is not valid, or no longer")
    elseif inside.instance ~= peer_of(txn) then
        refuse(403, "this token was sealed for " .. inside.instance .. ", and somebody else sent it")
    elseif inside.scope ~= text then
        refuse(403, "this token was sealed with another scope")
    elseif target ~= facts.name or not seal.may_call(inside, service) then
        refuse(403, "this token was sealed for " .. inside.service .. " of " .. inside.instance
            .. ", which does not call " .. service .. " of " .. target)
    end
    return inside.token
end

-- What a service gets as its token.
local function passed(txn, token, issuer, text, service, target)
    if seal == nil or issuer ~= facts.name then
        return token
    elseif seal.is_sealed(token) then
        return opened(txn, token, text, service, target)
    elseif facts.sealed[target] then
        return seal.close(txn, token, service, target, text)
    end
    return token
end

-- Nova creates a server's ports with its own account, and therefore in its own instance.
local function check_network(txn, path, scope)
    local is_new_server = txn.f:method() == "POST" and path:match("/servers/?$")
    if is_new_server and scope.network and scope.network ~= scope.compute then
        txn:set_var("txn.elsewhere", "a server\\u0027s network has to be of the same instance as its "
            .. "compute, and this scope says " .. scope.network .. " and " .. scope.compute
            .. ': add \\"network\\": \\"' .. scope.compute .. '\\" to the scope, or ask for no '
            .. "network (--nic none)")
    end
end

local function refuse_headers(headers)
    for name in pairs(headers) do
        if FORGED[name] then
            refuse(400, "the header " .. name .. " is not for clients: send the token in X-Auth-Token")
        end
    end
    for _, value in pairs(headers.authorization or {}) do
        if is_tagged(value) then
            refuse(400, "send a tagged token in X-Auth-Token, not in Authorization")
        end
    end
end

local function refuse_several(headers)
    for index, name in ipairs(SINGLE_LOWER) do
        if headers[name] and headers[name][1] then
            refuse(400, "several " .. SINGLE[index] .. " headers: send one")
        end
    end
end

local function route(txn)
    local headers = txn.http:req_get_headers()
    refuse_headers(headers)
    local service, path, url = read_path(txn)
    refuse_several(headers)
    local token = plain(txn, value_of(headers, "x-auth-token"))
    local subject = value_of(headers, "x-subject-token")
    local service_token = plain(txn, value_of(headers, "x-service-token"))

    local header = value_of(headers, "x-scope")
    local known = understand(txn, header, url, tag_if_any(token), "X-Auth-Token")
    local about = is_tagged(subject)
        and understand(txn, header, url, tag_of(subject), "X-Subject-Token")
    local by = tag_if_any(service_token) and read(txn, tag_of(service_token), "X-Service-Token")
    require_trust(by and by.identity)
    require_trust(about and about.tag_issuer)
    require_trust(known.tag_issuer)
    require_trust(known.scope.identity)

    local scope, carried, text = known.scope, known.carried, known.carried and known.text or "{}"
    local target, here, there = scope[service], "local_", "peer_"
    if service == "identity" then
        local issuer = about and (about.tag_issuer or facts.name)
        to_keystone(txn, token, scope.identity, subject, issuer)
        if about then
            target, there = issuer, "issuer_"
            text = issued(about.scope, issuer)
        end
        local issuer_of_subject = subject and (issuer or facts.name)
        if seal and issuer_of_subject == facts.name and seal.is_sealed(subject) then
            open_for_keystone(txn, path, token and bare(token), bare(subject))
        elseif seal and token and not about and (known.tag_issuer or scope.identity) == facts.name then
            if seal.is_sealed(token) then
                refuse(401, "a sealed token is for services, and not for keystone")
            elseif facts.sealed[target] then
                refuse(401, "this token was issued by " .. facts.name .. ", and not by " .. target)
            end
        end
        if carried or about then
            txn:set_var("txn.mints", true)
            txn:set_var("txn.tag", text)
        end
    else
        if scope.identity ~= facts.name then
            here = "foreign_"
        end
        if carried and token then
            local sent = passed(txn, bare(token), known.tag_issuer or scope.identity, text, service, target)
            txn.http:req_set_header("X-Auth-Token", sent .. facts.mark .. text)
        end
        if carried and service == "compute" then
            check_network(txn, path, scope)
        end
    end
    if service_token then
        keep_service_token(txn, service_token, by and by.identity or facts.name, target)
    end
    if headers["x-scope"] then
        txn.http:req_del_header("X-Scope")
    end
    local backend = target == facts.name and here .. service or there .. target
    txn:set_var("txn.route", backend .. " " .. service .. " " .. text)
end

-- The answer to a request that is refused: its headers and its body.
local function refusal(fault)
    local headers = { ["Content-Type"] = "application/json" }
    if fault.status == 401 then
        headers["WWW-Authenticate"] = 'Keystone uri="http://' .. facts.bind .. '"'
    end
    return headers, '{"error": {"code": ' .. fault.status .. ', "title": "' .. REASONS[fault.status]
        .. '", "message": "' .. fault.message .. '"}}'
end

core.register_action("route", { "http-req" }, function(txn)
    local routed, fault = pcall(route, txn)
    if routed then
        return
    elseif type(fault) ~= "table" then
        error(fault, 0)
    end
    local service = service_at(txn.f:path())
    if service then
        local scope = fault.issuer and '{"identity":"' .. fault.issuer .. '"}' or "{}"
        txn:set_var("txn.route", "local_" .. service .. " " .. service .. " " .. scope)
    end
    local reply = txn:reply({ status = fault.status, reason = REASONS[fault.status] })
    local headers, body = refusal(fault)
    for name, value in pairs(headers) do
        reply:add_header(name, value)
    end
    reply:set_body(body)
    txn:done(reply)
end)

-- The body of a request, which may arrive in chunks.
local function receive(applet)
    local parts, size = {}, 0
    repeat
        local part = applet:receive(65536) or ""
        parts[#parts + 1], size = part, size + #part
        if size > LONGEST_LOGIN then
            refuse(413, "the body of a login may have " .. LONGEST_LOGIN .. " bytes")
        end
    until part == ""
    return table.concat(parts)
end

-- Moves the tag of the token with which a user logs in from the body to X-Scope. The issuer of a token is
-- the only one that can exchange it.
local function take_tag(applet, headers, body)
    local encoded, rest = split(applet.path)
    local token, first, last = json.find_string(body, { "auth", "identity", "token", "id" })
    if service_at(encoded and "/" .. rest or applet.path) ~= "identity" or not is_tagged(token) then
        return body
    end
    refuse_several(headers)
    local known = understand(applet, value_of(headers, "x-scope"), encoded and decoded(applet, encoded),
                             tag_of(token), "the token in the body")
    local issuer = known.tag_issuer or facts.name
    require_trust(issuer)
    headers["x-scope"] = { [0] = issued(known.scope, issuer) }
    return body:sub(1, first - 1) .. json.quote(bare(token)) .. body:sub(last + 1)
end

-- Sends a request to this proxy.
local function send(method, path, headers, body)
    local answer = core.httpclient()[method](core.httpclient(), {
        url = "http://" .. facts.bind .. path,
        dst = "unix@" .. facts.logins,
        headers = headers,
        body = body,
    })
    if answer.status == 0 then
        refuse(503, "the proxy of " .. facts.name .. " does not answer itself")
    end
    return answer
end

-- Sends the request that this applet got, with its headers and this body, to this proxy again.
local function send_again(applet, method, body)
    for _, name in ipairs(OF_CONNECTION) do
        applet.headers[name] = nil
    end
    if body then
        applet.headers["content-length"] = { [0] = tostring(#body) }
    end
    local query = applet.qs ~= "" and "?" .. applet.qs or ""
    return send(method, applet.path .. query, applet.headers, body)
end

local function login(applet)
    return send_again(applet, "post", take_tag(applet, applet.headers, receive(applet)))
end

-- What an issuer says of a token, without the roles that do not count here. The issuer may be hostile, and
-- services must read what this function reads: UTF-8 (with a NUL, it is something else), and nothing
-- beside "token".
local function without_roles(body, policy)
    local token = not body:find("\0", 1, true) and json.find_object(body, { "token" })
    if not token then
        refuse(503, "the issuer says something else than what the token is")
    end
    local roles, first, last = json.find_array(token, { "roles" })
    if roles == nil then
        if token:find("[\\]") or token:find('"roles"', 1, true) then
            refuse(503, "the issuer says something else than what the roles are")
        end
        return '{"token": ' .. token .. "}"
    end
    local kept = {}
    for _, role in ipairs(roles) do
        local name = json.find_string(role, { "name" })
        local counts = name ~= nil and (policy.only == nil or policy.only[name])
        if counts and (policy.admin or not OF_ADMINISTRATORS[name:lower()]) then
            kept[#kept + 1] = role
        end
    end
    return '{"token": ' .. token:sub(1, first - 1) .. "[" .. table.concat(kept, ", ") .. "]"
        .. token:sub(last + 1) .. "}"
end

-- A question about a token. Its answer comes by way of this proxy, too.
local function validate(applet)
    local subject = value_of(applet.headers, "x-subject-token")
    local issuer = read(applet, tag_of(subject), "X-Subject-Token").identity
    local policy = facts.roles[issuer]
    -- The answer has to be readable here.
    applet.headers["accept-encoding"] = nil
    local answer = send_again(applet, "get")
    if answer.status ~= 200 or policy == nil then
        return answer
    end
    local body = without_roles(answer.body, policy)
    return {
        status = 200, reason = "OK", body = body,
        headers = {
            -- With a charset, no client guesses one.
            ["content-type"] = { [0] = "application/json; charset=utf-8" },
            ["content-length"] = { [0] = tostring(#body) },
            ["x-subject-token"] = answer.headers["x-subject-token"],
            ["vary"] = { [0] = "X-Auth-Token" },
        },
    }
end

-- What this proxy knows, for whoever has a valid token: the answer of keystone decides.
local function tell(applet)
    local token = applet.headers["x-auth-token"]
    if token == nil then
        refuse(401, "The request you have made requires authentication.")
    end
    local answer = send("get", "/" .. facts.identity .. "/v3/auth/tokens?nocatalog",
                        { ["x-auth-token"] = token, ["x-subject-token"] = token })
    if answer.status ~= 200 then
        return answer
    end
    local instances = {}
    for _, name in ipairs(facts.names) do
        local state = "up"
        if name ~= facts.name then
            state = core.backends["peer_" .. name].servers[name]:get_stats().status == "DOWN" and "down" or "up"
        end
        instances[#instances + 1] = '{"name": "' .. name .. '", "state": "' .. state .. '", "trusted": '
            .. tostring(facts.instances[name] ~= "untrusted") .. "}"
    end
    local body = '{"instance": "' .. facts.name .. '", "services": ["' .. table.concat(facts.order, '", "')
        .. '"], "instances": [' .. table.concat(instances, ", ") .. "]}"
    return {
        status = 200, reason = "OK", body = body,
        headers = {
            ["content-type"] = { [0] = "application/json" }, ["content-length"] = { [0] = tostring(#body) },
        },
    }
end

-- Registers a service that answers with what the function returns, or with its refusal.
local function register(name, serve)
    core.register_service(name, "http", function(applet)
        local done, answer = pcall(serve, applet)
        if done then
            applet:set_status(answer.status, answer.reason)
            for header, values in pairs(answer.headers) do
                for _, value in pairs(values) do
                    applet:add_header(header, value)
                end
            end
            applet:start_response()
            applet:send(answer.body or "")
        elseif type(answer) ~= "table" then
            error(answer, 0)
        else
            local headers, body = refusal(answer)
            applet:set_status(answer.status, REASONS[answer.status])
            for header, value in pairs(headers) do
                applet:add_header(header, value)
            end
            applet:add_header("Content-Length", tostring(#body))
            applet:start_response()
            applet:send(body)
        end
    end)
end

register("login", login)
register("validate", validate)
register("instances", tell)
