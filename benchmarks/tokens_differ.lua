-- For wrk: every request has another token than the 19,999 before it.
local requests, last = {}, 0

function init()
    local token = wrk.headers["X-Auth-Token"]
    for number = 10001, 30000 do
        wrk.headers["X-Auth-Token"] = token:gsub("^gAAAAABxxxxx", "gAAAAAB" .. number)
        requests[#requests + 1] = wrk.format()
    end
end

function request()
    last = last % #requests + 1
    return requests[last]
end
